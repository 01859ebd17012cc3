#!/usr/bin/env bash
# Writes the locks from pyproject.toml. None needs a GPU. Pins that still fit are kept; UPGRADE=1 takes the newest of everything.
#   locks/cpu.txt, cpu-torch.txt   what a run and the service need without a GPU
#   locks/cuda.txt                 the same with one: what the image holds
#   locks/dev.txt                  what tests and checks need beside either of them
#   locks/harness.txt              lm-evaluation-harness, in an environment of its own
#   locks/smollm2.txt              the wheel that carries SmolLM2, and what reads it
#
# They are resolved for Python 3.11, the oldest that the package supports, and Linux on x86-64. A `--universal` lock
# cannot be made: PyTorch's CPU build has a wheel a Python version, and not every source of it carries all of them.
# Every line is hashed but torch's CPU build: its sources build it separately, so it has a file of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
VENV=${UNLEARN_RAY_VENV:-$VENV} # any with uv, or a place for one: the locks don't depend on what else is in it
ensure_uv

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

compile() { # compile <name> <extra>... [-- options]: pyproject's dependencies with these extras, into $work/<name>.txt
    local file=$work/$1.txt extras=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do extras+=(--extra "$1"); shift; done
    resolve "$file" pyproject.toml "${extras[@]}" "${@:2}"
}

resolve() { # resolve <file> <what>...
    "$VENV/bin/uv" pip compile "${@:2}" --output-file "$1" --quiet \
        --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --generate-hashes --no-header --no-annotate \
        --no-emit-find-links --no-emit-index-url ${UPGRADE:+--upgrade}
}

pins() { # the pins of these locks, the first of a name wins
    grep -hsoE '^[a-z0-9.-]+==[^ ]+' "$@" | awk -F== '!seen[$1]++' || true
}

without() { # without <lock> <other>...: its lines, but those of packages that the others hold
    awk 'FILENAME != last { last = FILENAME; number++ }
         /^[^ ]/ { split($0, name, "=="); if (number == count) skip = name[1] in held; else held[name[1]] }
         number == count && !skip' count="$#" "${@:2}" "$1"
}

say "resolving for machines without a GPU"
# Together with the tools of tests first: both halves then hold the versions that fit each other.
no_cuda=(--override locks/cpu.overrides.txt)
pins locks/cpu.txt locks/cpu-torch.txt locks/dev.txt >"$work/cpu-all.txt"
if ! compile cpu-all cpu aws dev -- "${no_cuda[@]}" 2>"$work/error"; then
    # Not where uv looks: PyTorch's index has it. Only torch is taken from there.
    torch=$(sed -n 's/^cpu = .*"torch==\([0-9.]*\)".*/\1/p' pyproject.toml)
    "$VENV/bin/python" -m pip download --quiet --no-deps --python-version 3.11 --only-binary :all: --dest "$work/wheels" \
        --index-url "$PYTORCH_CPU_INDEX" "torch==$torch+cpu" || { cat "$work/error" >&2; exit 1; }
    no_cuda+=(--find-links "$work/wheels")
    compile cpu-all cpu aws dev -- "${no_cuda[@]}"
fi
# From here on nothing is taken anew but what was not just found: one version of a package on every machine.
kept() { if [ -z "${upgrade}" ]; then echo "$1"; fi; } # the old lock, unless it is to be upgraded
upgrade=${UPGRADE:-} UPGRADE=
pins "$work/cpu-all.txt" >"$work/cpu.txt"
compile cpu cpu aws -- "${no_cuda[@]}"
without "$work/cpu-all.txt" "$work/cpu.txt" >locks/dev.txt
awk -v torch=locks/cpu-torch.txt '/^[^ ]/ { skip = /^torch==/; if (skip) print $1 >torch } !skip' "$work/cpu.txt" >locks/cpu.txt

say "resolving for CUDA"
# The CPU lock's versions first, so that what was tested on a laptop is what runs on a cluster.
pins locks/cpu.txt locks/dev.txt $(kept locks/cuda.txt) >"$work/cuda-all.txt"
UV_FIND_LINKS= compile cuda-all cuda aws dev
pins "$work/cuda-all.txt" >"$work/cuda.txt"
UV_FIND_LINKS= compile cuda cuda aws
cp "$work/cuda.txt" locks/cuda.txt
pins "$work/cuda-all.txt" | sort >"$work/wanted"
pins locks/cuda.txt locks/dev.txt | sort >"$work/locked"
missing=$(comm -23 "$work/wanted" "$work/locked")
[ -z "$missing" ] || fail "beside CUDA the tests' tools need what locks/dev.txt does not hold: $missing"

say "resolving for lm-evaluation-harness"
pins locks/cpu.txt locks/dev.txt $(kept locks/harness.txt) >"$work/harness.txt"
resolve "$work/harness.txt" --group harness
cp "$work/harness.txt" locks/harness.txt

say "resolving for SmolLM2"
pins locks/cpu.txt $(kept locks/smollm2.txt) >"$work/smollm2.txt"
resolve "$work/smollm2.txt" --group smollm2 --no-deps
cp "$work/smollm2.txt" locks/smollm2.txt

say "packages: $(for lock in cpu cuda dev harness smollm2; do echo -n "$lock $(pins "locks/$lock.txt" | wc -l)  "; done)"
