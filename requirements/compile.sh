#!/usr/bin/env bash
# Makes the lock file of one Python version: bash requirements/compile.sh PYTHON (an interpreter of version 3.11 or 3.12).
# Works in a throw-away environment; no host name or index address gets into the result.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${1:?usage: bash requirements/compile.sh PYTHON}"
tag="$("$python" -c 'import sys; print("py%d%d" % sys.version_info[:2])')"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pip-tools
cd "$here" # so that the lock names core.in without a path
# Pins of the existing lock are kept where they still satisfy core.in; delete the lock to move everything.
CUSTOM_COMPILE_COMMAND="bash requirements/compile.sh" "$work/venv/bin/pip-compile" --quiet --generate-hashes --strip-extras \
    --unsafe-package torch --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
    --output-file "lock-$tag.txt" core.in
# What comes with torch is left out like torch: the CUDA libraries of its GPU builds, and pip-compile's remark about it.
awk '/^# WARNING: The following packages were not pinned/ { exit }
     /^[a-z]/ { skip = /^(cuda|nvidia)-/ && !/^nvidia-ml-py==/ }
     !skip' "lock-$tag.txt" > "$work/lock" && cp "$work/lock" "lock-$tag.txt"
echo "wrote requirements/lock-$tag.txt"
