# GR00T's released models run in an environment of their own (bash setup.sh gr00t); sourced by train.sh.

# gr00t_run ARGS...: true when `gr00t.backend=` or the run that `--checkpoint` names asks for n1.7 or n1.5. With
# gr00t.mlp_fallback=true a missing environment is no reason to stop: the run says loudly what it does instead.
gr00t_run() {
    local word place real='' fallback=''
    while [[ $# -gt 0 ]]; do
        word="$1"
        [[ $word != --checkpoint ]] || word="$1=${2:-}"
        case "$word" in
            gr00t.backend=n1.[57]) real=yes ;;
            gr00t.mlp_fallback=true) fallback=yes ;;
            --checkpoint=*)
                for place in "${word#*=}" "$(dirname "${word#*=}")"; do
                    ! grep -qsE '^  backend: n1\.[57]$' "$place/config.yaml" || real=yes
                    ! grep -qsE '^  mlp_fallback: true$' "$place/config.yaml" || fallback=yes
                done
                ;;
        esac
        shift
    done
    [[ -n $real && (-z $fallback || -f "$REPO/.venv-gr00t/.setup-stamp") ]]
}

# use_gr00t_python: PYTHON_BIN becomes the interpreter of that environment.
use_gr00t_python() {
    [[ -f "$REPO/.venv-gr00t/.setup-stamp" ]] ||
        die "this gr00t.backend needs LeRobot, which is not installed; install it once (Python 3.12, 8 GB): bash setup.sh gr00t"
    PYTHON_BIN="$REPO/.venv-gr00t/bin/python"
}
