#!/usr/bin/env bash
# Writes locks/cpu.txt, locks/cpu-torch.txt, locks/cuda.txt and locks/harness.txt from pyproject.toml. None needs a GPU.
# Pins that still fit are kept; UPGRADE=1 takes the newest of everything.
#
# They are resolved for Python 3.11, the oldest that the package supports, and Linux on x86-64. A `--universal` lock
# cannot be made: PyTorch's CPU build has a wheel a Python version, and not every source of it carries all of them.
# Every line is hashed but torch's CPU build: its sources build it separately, so it has a file of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
ensure_uv

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # compile <extra> [options]: pyproject's dependencies with this extra, into $work/<extra>.txt
    resolve "$work/$1.txt" pyproject.toml --extra "$1" --extra dev "${@:2}"
}

resolve() { # resolve <file> <what>...
    "$VENV/bin/uv" pip compile "${@:2}" --output-file "$1" --quiet \
        --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --generate-hashes --no-header --no-annotate \
        --no-emit-find-links --no-emit-index-url ${UPGRADE:+--upgrade}
}

pins() { # the pins of these locks, the first of a name wins
    grep -hsoE '^[a-z0-9.-]+==[^ ]+' "$@" | awk -F== '!seen[$1]++' || true
}

say "resolving for machines without a GPU"
pins locks/cpu.txt locks/cpu-torch.txt >"$work/cpu.txt"
if ! compile cpu --override locks/cpu.overrides.txt 2>"$work/error"; then
    # Not where uv looks: PyTorch's index has it. Only torch is taken from there.
    torch=$(sed -n 's/^cpu = .*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
    "$VENV/bin/python" -m pip download --quiet --no-deps --python-version 3.11 --only-binary :all: --dest "$work/wheels" \
        --index-url "$PYTORCH_CPU_INDEX" "torch==$torch+cpu" || { cat "$work/error" >&2; exit 1; }
    compile cpu --override locks/cpu.overrides.txt --find-links "$work/wheels"
fi
awk -v torch=locks/cpu-torch.txt '/^[^ ]/ { skip = /^torch==/; if (skip) print $1 >torch } !skip' "$work/cpu.txt" >locks/cpu.txt

say "resolving for CUDA"
# The CPU lock's versions first, so that what was tested on a laptop is what runs on a cluster.
pins locks/cpu.txt locks/cuda.txt >"$work/cuda.txt"
UV_FIND_LINKS= compile cuda
cp "$work/cuda.txt" locks/cuda.txt

say "resolving for lm-evaluation-harness"
pins locks/cpu.txt locks/harness.txt >"$work/harness.txt"
resolve "$work/harness.txt" --group harness
cp "$work/harness.txt" locks/harness.txt

say "locks/cpu.txt: $(pins locks/cpu.txt | wc -l) packages, locks/cuda.txt: $(pins locks/cuda.txt | wc -l)"
