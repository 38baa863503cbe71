#!/usr/bin/env bash
# Sets up everything this project needs, inside the project: bash setup.sh. train.sh and tests/run.sh call it by
# themselves; a second call finds the stamps and ends at once.
#   .venv            Python packages, pinned and hashed in requirements/lock-py3XX.txt
#   .cache/vulkan    a software Vulkan driver, only where SAPIEN cannot draw with the machine's own
# bash setup.sh isaaclab   Isaac Lab 3 in .venv-isaaclab; only when asked for
# bash setup.sh gr00t      GR00T N1.7 (LeRobot) in .venv-gr00t; only when asked for
# bash setup.sh deepspeed  DeepSpeed, into .venv; only when asked for
# PYTHON=...               the interpreter to use (3.11 or 3.12); default: python3.11, python3.12, python3
# F1_TORCH_INDEX_URL=...   package index for torch alone, for a CPU build or another CUDA version; default: pip's own
# F1_SETUP_SKIP_VULKAN=1   leaves the driver alone (lint, types, phases that draw nothing)
# Exit codes: 0 ready, 4 something is missing that only you can install (the message says what).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
REPO="$PWD"
TORCH="torch==2.13.0"
STAMP=.venv/.setup-stamp
UNFINISHED=.venv/.setup-unfinished

source scripts/find_python.sh
source scripts/setup_parts.sh
source scripts/setup_deepspeed.sh

fail() { printf 'setup: %s\n' "$1" >&2; exit 4; }

# What the environment was made from; moving the checkout or changing a pin makes it anew.
fingerprint() { { cat setup.sh requirements/lock-*.txt; echo "$REPO ${F1_TORCH_INDEX_URL:-}"; } | sha256sum | cut -d' ' -f1; }

# True when .venv is complete and, if PYTHON is given, of that interpreter's version.
ready() {
    [[ -f $STAMP && "$(<"$STAMP")" == "$FINGERPRINT" ]] || return 1
    [[ -z "${PYTHON:-}" ]] || [[ "$(python_version "$PYTHON")" == "$(python_version .venv/bin/python)" ]]
}

install_packages() {
    local version pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input)
    [[ -e $UNFINISHED ]] && rm -rf .venv # interrupted: packages may be half there
    local python
    python="$(find_python)" || exit 4
    version="$(python_version "$python")"
    if [[ -x .venv/bin/python && "$(python_version .venv/bin/python)" != "$version" ]]; then rm -rf .venv; fi
    rm -f "$STAMP"
    if [[ ! -x .venv/bin/python ]]; then
        echo "setup: making .venv with Python $version (a few minutes)"
        mkdir -p .venv && : > "$UNFINISHED"
        make_venv "$python"
    fi
    : > "$UNFINISHED"
    # --no-deps: the list is complete. Hashes: what arrives is what was locked.
    "${pip[@]}" install --quiet --no-deps --require-hashes -r "requirements/lock-py${version/./}.txt" ||
        fail "installing the packages failed (message above); check the network and start again"
    # torch apart: its build depends on the machine, and a CUDA build brings its own CUDA libraries. Its pure-Python
    # dependencies are in the lock already.
    "${pip[@]}" install --quiet ${F1_TORCH_INDEX_URL:+--index-url "$F1_TORCH_INDEX_URL"} "$TORCH" ||
        fail "installing $TORCH failed (message above); F1_TORCH_INDEX_URL chooses another package index for it"
    # `python -m rl...` shall work from any directory. A path file, not an editable install: nothing is built or copied.
    echo "$REPO" > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/f1_trainer.pth"
    rm -f "$UNFINISHED"
    echo "$FINGERPRINT" > "$STAMP.new" && mv "$STAMP.new" "$STAMP"
}

main() {
    FINGERPRINT="$(fingerprint)"
    mkdir -p .cache 2>/dev/null || fail "cannot write to $REPO; the set-up needs a checkout that you own"
    exec 9> .cache/setup.lock
    if ! flock -n 9; then
        echo "setup: another set-up of this checkout is running, waiting for it"
        flock 9
    fi
    case "${1:-}" in
        '') ;;
        isaaclab) setup_part isaaclab 9 9>&-; return ;;
        gr00t) setup_part gr00t 8 9>&-; return ;;
        deepspeed) ;;
        *) fail "unknown part '$1'; there are: isaaclab, gr00t, deepspeed" ;;
    esac
    ready || install_packages
    if [[ "${1:-}" == deepspeed ]]; then install_deepspeed 9>&-; return; fi
    if [[ -z "${F1_SETUP_SKIP_VULKAN:-}" ]]; then
        .venv/bin/python scripts/install_vulkan.py 9>&- || exit 4
    fi
    exec 9>&-
}
main "$@"
