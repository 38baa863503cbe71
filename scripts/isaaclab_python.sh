# Isaac Lab tasks run in an environment of their own (bash setup.sh isaaclab); sourced by train.sh.
source "$(dirname "${BASH_SOURCE[0]}")/part_python.sh"

# isaac_file FILE: true when the configuration FILE has a task of Isaac Lab, plain or quoted, in a block or {in: braces}.
isaac_file() { grep -qsE "^[^#]*\\btask: *[\"']?Isaac" "$1"; }

# isaac_task ARGS...: true when `--task`, `rl.task=`, the file of `--rl_config` (where neither is given) or the run that
# `--checkpoint` names is a task of Isaac Lab.
isaac_task() {
    local word place task='' file=''
    while [[ $# -gt 0 ]]; do
        word="$1"
        case "$word" in
            --task | --checkpoint | --rl_config | --rl-config) word="$1=${2:-}" ;;
        esac
        case "$word" in
            --task=Isaac* | rl.task=Isaac*) return 0 ;;
            --task=* | rl.task=*) task="${word#*=}" ;;
            --rl_config=* | --rl-config=*) file="${word#*=}" ;;
            --checkpoint=*)
                for place in "${word#*=}" "$(dirname "${word#*=}")"; do
                    isaac_file "$place/config.yaml" && return 0
                done
                ;;
        esac
        shift
    done
    [[ -z $task && -n $file ]] && isaac_file "$file"
}

# use_isaac_python: PYTHON_BIN becomes the interpreter of that environment, or F1_ISAACLAB_PYTHON where that is set.
use_isaac_python() {
    if [[ -n "${F1_ISAACLAB_PYTHON:-}" ]]; then
        [[ -x $F1_ISAACLAB_PYTHON ]] || die "F1_ISAACLAB_PYTHON=$F1_ISAACLAB_PYTHON is no interpreter that can be started"
        PYTHON_BIN="$F1_ISAACLAB_PYTHON"
        return
    fi
    require_part isaaclab "Isaac Lab" 9 "this task"
    PYTHON_BIN="$REPO/.venv-isaaclab/bin/python"
}
