# Sourced by the scripts beside it: what they share about this machine.
VENV=.venv
UV_VERSION=0.13.9
PYTORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

say() { echo "[setup] $*"; }
fail() { echo "[setup] error: $*" >&2; exit 1; }

# ensure_uv: a .venv with uv in it, and uv told what pip is told about this machine.
ensure_uv() {
    local python=${PYTHON:-python3} find_links index_url
    if [ ! -x "$VENV/bin/python" ]; then
        command -v "$python" >/dev/null || fail "$python is not here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
            fail "$("$python" --version) does not fit: Python 3.11 to 3.14 is needed, name one: make PYTHON=/path/to/python3"
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python lacks its venv module: install it (on Debian and Ubuntu: apt-get install python3-venv)"
        say "making $VENV with $("$python" --version)"
        "$python" -m venv "$VENV"
    fi
    if [ "$("$VENV/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
        say "installing uv $UV_VERSION"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
    fi
    # uv reads none of pip's settings: a mirror or a folder of wheels that pip knows is passed on.
    find_links=${PIP_FIND_LINKS:-$("$VENV/bin/python" -m pip config get global.find-links 2>/dev/null || true)}
    index_url=${PIP_INDEX_URL:-$("$VENV/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$find_links" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-${find_links//[[:space:]]/,}}; fi
    if [ -n "$index_url" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index_url}; fi
}
