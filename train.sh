#!/usr/bin/env bash
# Starts one phase; no hyper-parameter lives here. See usage below.
set -euo pipefail
REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
PYTHON_BIN="$REPO/.venv/bin/python"
source "$REPO/scripts/launch.sh"
source "$REPO/scripts/isaaclab_python.sh"
source "$REPO/scripts/gr00t_python.sh"

usage() {
    cat << 'END'
usage: bash train.sh PHASE [NUM_PROCESSES] [ENVS_PER_PROCESS] [--flags] [block.key=value ...]

  teacher      phase 1: train the world model to predict the next wrist-camera frame
  student      phase 2: train the explorer with the frozen world model
  adversarial  phase 3: world model and explorer against each other
  evaluate     measure a checkpoint on held-out scenes
  tokenizer    train the picture tokenizer
  pipeline     all phases one after another
  arm          PPO, A2C, SAC, FASTSAC and DIT on the arm-reaching tasks
  rl           the same on any task by its id
  play         watch a trained policy
  doctor       check this machine: versions, devices, a rendered test frame
  plan         estimate memory and time of a run
  watch        what a run is doing: bash train.sh watch RUN [--follow]

NUM_PROCESSES: one a GPU, default 1. ENVS_PER_PROCESS: environments in each, default from the configuration.
`bash train.sh PHASE --help` lists the flags. The first start sets everything up (bash setup.sh).
Environment: CUDA_VISIBLE_DEVICES (GPUs to use), PYTHON (interpreter for the set-up), OMP_NUM_THREADS;
on several nodes NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT: the same command on each, NUM_PROCESSES of them a node.
Exit codes: 0 done, 75 stopped by a signal (continue with --auto_resume), 3 not finite, 4 wrong input, others: crash
(continue with --auto_resume, or let --max_restarts N do it).

Examples:
  bash train.sh teacher 1 1 --num_episodes 20
  bash train.sh plan teacher --model_config f1_base --num_processes 8
  CUDA_VISIBLE_DEVICES=0,1,2,3 bash train.sh teacher 4 2 --num_episodes 10000 --auto_resume
END
}

die() { printf 'train.sh: %s\n' "$1" >&2; exit 4; }

# phase -> module, and whether it has environments (and so draws pictures)
select_phase() {
    ENVIRONMENTS=yes
    case "$1" in
        teacher | student | adversarial) MODULE="rl.training.train_$1_rl" ;;
        evaluate) MODULE=rl.training.evaluate_rl ;;
        tokenizer | arm | rl) MODULE="rl.training.train_$1" ;;
        pipeline | play) MODULE="rl.training.$1" ;;
        doctor | plan | watch) MODULE="rl.training.$1" ENVIRONMENTS=no ;;
        *) die "unknown phase '$1'; there are: teacher student adversarial evaluate tokenizer pipeline arm rl play doctor plan watch" ;;
    esac
    [[ -f "$REPO/${MODULE//.//}.py" ]] || die "phase '$1' is not available in this version"
}

# check_count NAME VALUE: checks a number of processes or environments
check_count() {
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || die "$1 is '$2'; it must be a whole number of at least 1 (see bash train.sh --help)"
}

main() {
    local phase="${1:-}" processes='' envs='' accelerate_config='' args=() explicit_envs='' restarts='' original=("$@")
    case "$phase" in
        '') usage >&2; exit 4 ;;
        -h | --help | help) usage; exit 0 ;;
    esac
    shift
    select_phase "$phase"
    # `plan` is about another phase, named first.
    if [[ $phase == plan && $# -gt 0 && $1 =~ ^[a-z][a-z0-9]*$ ]]; then args+=(--phase "$1"); shift; fi
    # The numbers end at the first word that is a flag or an override.
    if [[ $# -gt 0 && $1 != -[!0-9]* && $1 != *=* ]]; then check_count NUM_PROCESSES "$1"; processes="$1"; shift; fi
    if [[ -n $processes && $# -gt 0 && $1 != -[!0-9]* && $1 != *=* ]]; then check_count ENVS_PER_PROCESS "$1"; envs="$1"; shift; fi
    [[ $ENVIRONMENTS == yes || -z $processes ]] || die "phase '$phase' takes no numbers of processes and environments"
    local help=''
    while [[ $# -gt 0 ]]; do
        case "$1" in
            --accelerate_config) accelerate_config="${2:-}"; [[ -n $accelerate_config ]] || die "--accelerate_config needs a file"; shift ;;
            --accelerate_config=*) accelerate_config="${1#*=}" ;;
            --max_restarts) restarts="${2:-}"; [[ -n $restarts ]] || die "--max_restarts needs a number"; shift ;;
            --max_restarts=*) restarts="${1#*=}" ;;
            -h | --help) help=yes; args+=(--help) ;;
            --num_envs | --num_envs=* | --num-envs | --num-envs=*) explicit_envs=yes; args+=("$1") ;;
            *) args+=("$1") ;;
        esac
        shift
    done
    [[ -z $envs || -z $explicit_envs ]] || die "ENVS_PER_PROCESS and --num_envs both say how many environments; give only one"
    [[ -z $envs ]] || args=(--num_envs "$envs" ${args[@]+"${args[@]}"})
    [[ -z $accelerate_config || -f $accelerate_config ]] || die "--accelerate_config: no file '$accelerate_config'"

    [[ -z $restarts || $restarts =~ ^[0-9]{1,4}$ ]] || die "--max_restarts is '$restarts'; it must be a whole number of at least 0"
    if [[ -n $restarts && $restarts != 0 && -z ${RL_RESTARTS:-} && -z $help ]]; then
        case "$phase" in
            evaluate | play | doctor | plan | watch) die "--max_restarts: $phase leaves no checkpoint to restart from" ;;
        esac
        bash "$REPO/setup.sh" >&2
        exec "$PYTHON_BIN" "$REPO/scripts/supervise.py" "$restarts" -- bash "$REPO/train.sh" "${original[@]}"
    fi

    if [[ $phase == pipeline ]]; then # its phases are launched by itself, one after another
        [[ -z $accelerate_config ]] || die "pipeline takes no --accelerate_config; start the phases one by one"
        [[ -z $processes ]] || args=(--num_processes "$processes" ${args[@]+"${args[@]}"})
        processes=1
    fi

    if [[ -z $help && ($phase == rl || $phase == play) ]] && isaac_task ${args[@]+"${args[@]}"}; then
        use_isaac_python
    elif [[ -z $help && $phase =~ ^(rl|arm|play)$ ]] && gr00t_run ${args[@]+"${args[@]}"}; then
        use_gr00t_python
    elif [[ -n $help || $phase == plan || $phase == watch ]]; then
        F1_SETUP_SKIP_VULKAN=1 bash "$REPO/setup.sh" >&2
    elif [[ $phase == doctor ]]; then
        # Without a driver doctor still has its say; without Python packages it cannot start.
        bash "$REPO/setup.sh" >&2 || [[ -f "$REPO/.venv/.setup-stamp" ]] || exit 4
    else
        bash "$REPO/setup.sh" >&2
    fi
    [[ -z $help ]] || launch 1 "$MODULE" --help
    if [[ -n $accelerate_config ]]; then
        launch_accelerate "$accelerate_config" "$processes" "$MODULE" ${args[@]+"${args[@]}"}
    fi
    launch "${processes:-1}" "$MODULE" ${args[@]+"${args[@]}"}
}
main "$@"
