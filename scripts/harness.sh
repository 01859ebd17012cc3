#!/usr/bin/env bash
# Makes .venv/harness hold locks/harness.txt: lm-evaluation-harness, which a test runs against the service.
# Does nothing when the lock did not change since it last finished.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

stamp=$VENV/harness/.setup
fingerprint=$({ echo "$PWD"; cat locks/harness.txt scripts/harness.sh; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then exit 0; fi
ensure_uv
say "installing locks/harness.txt: $(grep -c '^[a-z]' locks/harness.txt) packages"
"$VENV/bin/uv" venv --quiet --clear --python "$VENV/bin/python" "$VENV/harness"
VIRTUAL_ENV=$PWD/$VENV/harness "$VENV/bin/uv" pip sync --quiet --compile-bytecode locks/harness.txt
echo "$fingerprint" >"$stamp"
