# Parts with pins of their own, each in an environment of its own: `bash setup.sh isaaclab`, `bash setup.sh gr00t`.
# Sourced by setup.sh; uses fail, REPO and python_version from there. A part NAME is requirements/NAME.in and its lock.

# Prints a Python 3.12; neither Isaac Lab 3 nor LeRobot runs on an older one.
find_python312() {
    local candidate candidates=(python3.12 python3)
    [[ -n "${PYTHON:-}" ]] && candidates=("$PYTHON")
    if [[ -z "${PYTHON:-}" ]] && command -v pyenv > /dev/null && pyenv latest 3.12 > /dev/null 2>&1; then
        candidates+=("$(pyenv prefix "$(pyenv latest 3.12)")/bin/python")
    fi
    for candidate in "${candidates[@]}"; do
        if [[ "$(python_version "$candidate")" == 3.12 ]]; then
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    fail "this part needs Python 3.12; tried: ${candidates[*]}. Install one or name it: PYTHON=/path/to/python3.12"
}

# setup_part NAME GIGABYTES: .venv-NAME with everything in requirements/NAME-lock.txt, and this checkout on its path.
setup_part() {
    local name="$1" size="$2" venv=".venv-$1" stamp=".venv-$1/.setup-stamp" fingerprint python list
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
    fingerprint="$({ cat scripts/setup_parts.sh requirements/"$name"*; echo "$REPO"; } | sha256sum | cut -d' ' -f1)"
    [[ -f $stamp && "$(< "$stamp")" == "$fingerprint" ]] && return
    list="requirements/$name-lock.txt"
    # Other platforms have other wheels; a part without a lock file is resolved afresh.
    [[ "$(uname -sm)" == "Linux x86_64" && -f $list ]] || list="requirements/$name.in"
    if [[ ! -x $venv/bin/python ]]; then
        python="$(find_python312)" || exit 4
        echo "setup: making $venv (about $size GB, several minutes)"
        # What a failure leaves has a python but no pip; the next call would take it for made.
        "$python" -m venv "$venv" || { rm -rf "$venv"; fail "$python cannot make an environment; install its venv module"; }
    fi
    rm -f "$stamp"
    "${pip[@]}" install --quiet -r "$list" ||
        fail "installing $name failed (message above); check network and disk ($size GB) and start again"
    echo "$REPO" > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/f1_trainer.pth"
    echo "$fingerprint" > "$stamp.new" && mv "$stamp.new" "$stamp"
}
