# GR00T's released models run in an environment of their own (bash setup.sh gr00t); sourced by train.sh.
source "$(dirname "${BASH_SOURCE[0]}")/part_python.sh"

# gr00t_file FILE KEY VALUE: true when the configuration FILE has `KEY: VALUE` (a pattern), plain or quoted, in a block
# or {in: braces}.
gr00t_file() { grep -qsE "^[^#]*\\b$2: *[\"']?$3\\b" "$1"; }

# gr00t_run ARGS...: true when `gr00t.backend=`, the file of `--rl_config` (where that is not given) or the run that
# `--checkpoint` names asks for n1.7 or n1.5. With gr00t.mlp_fallback=true a missing environment is no reason to stop:
# the run says loudly what it does instead.
gr00t_run() {
    local word place real='' fallback='' file='' backend='' small=''
    while [[ $# -gt 0 ]]; do
        word="$1"
        case "$word" in
            --checkpoint | --rl_config | --rl-config) word="$1=${2:-}" ;;
        esac
        case "$word" in
            gr00t.backend=n1.[57]) real=yes ;;
            gr00t.backend=*) backend="${word#*=}" ;;
            gr00t.mlp_fallback=true) fallback=yes ;;
            gr00t.mlp_fallback=*) small="${word#*=}" ;;
            --rl_config=* | --rl-config=*) file="${word#*=}" ;;
            --checkpoint=*)
                for place in "${word#*=}" "$(dirname "${word#*=}")"; do
                    ! grep -qsE '^  backend: n1\.[57]$' "$place/config.yaml" || real=yes
                    ! grep -qsE '^  mlp_fallback: true$' "$place/config.yaml" || fallback=yes
                done
                ;;
        esac
        shift
    done
    [[ -n $backend ]] || ! gr00t_file "$file" backend 'n1\.[57]' || real=yes
    [[ -n $small ]] || ! gr00t_file "$file" mlp_fallback true || fallback=yes
    [[ -n $real && (-z $fallback || -f "$REPO/.venv-gr00t/.setup-stamp") ]]
}

# use_gr00t_python: PYTHON_BIN becomes the interpreter of that environment.
use_gr00t_python() {
    require_part gr00t LeRobot 8 "this gr00t.backend"
    PYTHON_BIN="$REPO/.venv-gr00t/bin/python"
}
