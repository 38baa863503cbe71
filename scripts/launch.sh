# Starts a training module in one process or several; sourced by train.sh. Needs PYTHON_BIN, the interpreter of .venv.

# launch NUM_PROCESSES MODULE [ARGS...]: one process replaces this shell, so signals and exit codes are its own.
# NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT (29500) start NUM_PROCESSES on each of several nodes.
launch() {
    local count="$1" module="$2"
    shift 2
    local cores
    cores="$(nproc)"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / count > 0 ? cores / count : 1))}"
    local place=(--standalone)
    if [[ ${NNODES:-1} != 1 ]]; then
        check_nodes
        place=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
    elif ((count == 1)); then
        exec "$PYTHON_BIN" -m "$module" "$@"
    fi
    # torch's launcher sends these signals on to the ranks only when told to.
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1
    # Saving a large checkpoint takes longer than the 30 s that the ranks get by default.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
    forward_signals "$PYTHON_BIN" "$(dirname "${BASH_SOURCE[0]}")/torchrun.py" "${place[@]}" --nproc-per-node "$count" \
        -m "$module" "$@"
}

# check_nodes: the variables of a start on several nodes; the same command runs on every node.
check_nodes() {
    refuse() { printf 'train.sh: %s\n' "$1" >&2; exit 4; }
    [[ $NNODES =~ ^[1-9][0-9]{0,4}$ ]] || refuse "NNODES is '$NNODES'; it must be a whole number of at least 1"
    [[ ${NODE_RANK:-} =~ ^[0-9]{1,5}$ ]] && ((NODE_RANK < NNODES)) ||
        refuse "NODE_RANK is '${NODE_RANK:-}'; on $NNODES nodes it must be 0 to $((NNODES - 1)), another on each"
    [[ -n ${MASTER_ADDR:-} ]] || refuse "MASTER_ADDR is not set; it is the address of node 0, the same on every node"
}

# launch_accelerate CONFIG_FILE NUM_PROCESSES_OR_EMPTY MODULE [ARGS...]: the same through `accelerate launch`.
launch_accelerate() {
    local config="$1" count="$2" module="$3" flags
    shift 3
    [[ ${NNODES:-1} == 1 ]] || check_nodes
    flags="$("$PYTHON_BIN" "$(dirname "${BASH_SOURCE[0]}")/check_accelerate.py" "$config" "$count")" || exit 4
    export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGUSR1
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
    # Some of accelerate's launchers pass no signal on and die of it: signal the ranks themselves, and wait for them.
    # shellcheck disable=SC2086 # flags are words without blanks
    SIGNAL_GROUP=yes forward_signals "$PYTHON_BIN" -m accelerate.commands.accelerate_cli launch --config_file "$config" \
        $flags -m "$module" "$@"
}

# forward_signals COMMAND...: runs it, passes TERM, INT and USR1 on and exits with the code that rank 0 wrote down,
# because launchers turn every failure (75 "stopped, can be resumed" too) into 1.
forward_signals() {
    local pid target code=0 signalled ranks_code
    RL_EXIT_CODE_FILE="$(mktemp)"
    export RL_EXIT_CODE_FILE
    set -m # a process group of its own: Ctrl+C arrives once, through the trap, and is not ignored by the child
    "$@" < /dev/null &
    pid=$!
    set +m
    target="$pid"
    [[ -z ${SIGNAL_GROUP:-} ]] || target="-$pid"
    for signal in TERM INT USR1; do
        # shellcheck disable=SC2064
        trap "signalled=1; kill -s $signal -- $target 2> /dev/null || true" "$signal"
    done
    while :; do # a signal ends `wait` early
        signalled=
        code=0
        wait "$pid" || code=$?
        [[ -n $signalled ]] || break
    done
    while [[ -n ${SIGNAL_GROUP:-} ]] && kill -0 -- "$target" 2> /dev/null; do sleep 0.1; done
    ranks_code="$(< "$RL_EXIT_CODE_FILE")"
    rm -f "$RL_EXIT_CODE_FILE"
    # Rank 0 may have ended well while another one failed: its 0 counts only if the launcher agrees.
    if ((code != 0)) && [[ $ranks_code =~ ^[0-9]+$ ]] && ((ranks_code != 0)); then code="$ranks_code"; fi
    exit "$code"
}
