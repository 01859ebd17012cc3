#!/usr/bin/env bash
# try-wheel.sh WHEEL: install the wheel and the locked dependencies into a clean environment, and run the quickstart in an empty folder.
# With OTHERS=FOLDER no dependency is installed: they are imported from FOLDER, a site-packages folder.
set -euo pipefail
wheel=$(realpath "$1")
root=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
uv=$root/.venv/bin/uv
"$root/.venv/bin/python" -m venv --without-pip "$work/venv"
if [ -n "${OTHERS:-}" ]; then
    echo "$OTHERS" >"$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/others.pth"
else
    cd "$root"
    . scripts/env.sh
    ensure_uv # gives uv the package index of pip
    install() { "$uv" pip install --quiet --no-deps --python "$work/venv/bin/python" "$@"; }
    install -r locks/cpu-torch.txt 2>/dev/null || install --default-index "$PYTORCH_CPU_INDEX" -r locks/cpu-torch.txt
    install -r locks/cpu.txt
fi
"$uv" pip install --quiet --offline --no-deps --python "$work/venv/bin/python" "$wheel"
cp "$root/jobs/configs/pocket.yaml" "$work"
cd "$work"
venv/bin/python -c 'import pathlib, sys, unlearn_ray; assert pathlib.Path(unlearn_ray.__file__).is_relative_to(sys.prefix), unlearn_ray.__file__'
venv/bin/unlearn-ray run pocket.yaml
