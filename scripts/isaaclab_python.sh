# Isaac Lab tasks run in an environment of their own (bash setup.sh isaaclab); sourced by train.sh.

# isaac_task ARGS...: true when `--task`, `rl.task=` or the run that `--checkpoint` names is a task of Isaac Lab.
isaac_task() {
    local word place
    while [[ $# -gt 0 ]]; do
        word="$1"
        case "$word" in
            --task | --checkpoint) word="$1=${2:-}" ;;
        esac
        case "$word" in
            --task=Isaac* | rl.task=Isaac*) return 0 ;;
            --checkpoint=*)
                for place in "${word#*=}" "$(dirname "${word#*=}")"; do
                    grep -qsE '^  task: Isaac' "$place/config.yaml" && return 0
                done
                ;;
        esac
        shift
    done
    return 1
}

# use_isaac_python: PYTHON_BIN becomes the interpreter of that environment.
use_isaac_python() {
    [[ -f "$REPO/.venv-isaaclab/.setup-stamp" ]] ||
        die "this task needs Isaac Lab, which is not installed; install it once (Python 3.12, 9 GB): bash setup.sh isaaclab"
    PYTHON_BIN="$REPO/.venv-isaaclab/bin/python"
}
