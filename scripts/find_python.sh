# Finds a Python and makes a virtual environment with it; sourced by setup.sh. Uses fail() and REPO from there.

python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

# Prints the interpreter to use. Candidates are run, not only looked up: pyenv puts names on PATH that refuse to start.
find_python() {
    local candidate version candidates=(python3.11 python3.12 python3)
    [[ -z "${PYTHON:-}" && -x .venv/bin/python ]] && candidates=(.venv/bin/python "${candidates[@]}")
    [[ -n "${PYTHON:-}" ]] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        version="$(python_version "$candidate")"
        if [[ $version == 3.11 || $version == 3.12 ]]; then
            # The interpreter itself: a version manager's stand-in picks another one once the settings change.
            "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
            return
        fi
    done
    fail "needs Python 3.11 or 3.12; tried: ${candidates[*]}. Install one (Debian, Ubuntu: sudo apt-get install python3 \
python3-venv) or name it: PYTHON=/path/to/python3.11 bash setup.sh"
}

# make_venv PYTHON: .venv with pip in it, in the first way that this machine allows.
make_venv() {
    local python="$1" wheels
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv .venv
    elif command -v virtualenv > /dev/null; then
        virtualenv --quiet --python "$python" .venv
    elif "$python" -m pip --version > /dev/null 2>&1; then
        "$python" -m venv --without-pip .venv
        "$python" -m pip --python .venv/bin/python install --quiet pip
    elif wheels="$(debian_pip_wheel)"; then
        "$python" -m venv --without-pip .venv
        .venv/bin/python "$wheels/pip" install --quiet --no-index "$wheels"
    else
        fail "$python has no venv/ensurepip; install it: sudo apt-get install python$(python_version "$python")-venv"
    fi
}

# Debian and Ubuntu keep pip's wheel in a package of its own; it can be fetched and unpacked without root.
debian_pip_wheel() {
    command -v apt-get dpkg > /dev/null || return 1
    local work="$REPO/.cache/pip-wheel"
    local apt=(-o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
    apt-get -q=2 "${apt[@]}" update > /dev/null 2>&1 || true # other sources may fail; the download below decides
    (cd "$work" && apt-get -q=2 "${apt[@]}" download python3-pip-whl > /dev/null 2>&1 && dpkg -x python3-pip-whl_*.deb .) || return 1
    ls "$work"/usr/share/python-wheels/pip-*.whl 2>/dev/null
}
