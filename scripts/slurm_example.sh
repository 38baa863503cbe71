#!/usr/bin/env bash
# A SLURM job that trains on several nodes and goes on after preemption and the time limit. Edit the lines with CHANGE.
#   sbatch scripts/slurm_example.sh teacher --num_episodes 100000
#SBATCH --job-name=f1-teacher
#SBATCH --nodes=2                  # CHANGE
#SBATCH --ntasks-per-node=1        # train.sh starts one process a GPU
#SBATCH --gpus-per-node=8          # CHANGE
#SBATCH --cpus-per-task=64         # CHANGE
#SBATCH --time=24:00:00            # CHANGE
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300        # to this script, 300 s before the end: more than saving a checkpoint takes
set -uo pipefail

# The directory of the checkout and of outputs/ must be shared by all nodes.
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}" || exit 4
phase="${1:?which phase? sbatch scripts/slurm_example.sh PHASE [flags]}"
shift
GPUS_PER_NODE="${SLURM_GPUS_ON_NODE:-1}"
export NNODES="$SLURM_JOB_NUM_NODES"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT=29500

# The same command on every node. --auto_resume starts the run the first time and continues it afterwards; a crash on
# one node ends the group on all, and every node starts again from the newest checkpoint.
srun --kill-on-bad-exit=0 bash -c \
    'export NODE_RANK="$SLURM_NODEID"; exec bash train.sh "$@" --auto_resume --max_restarts 10' \
    bash "$phase" "$GPUS_PER_NODE" "$@" &
pid=$!
# SIGUSR1 reaches every rank; they finish the update, save and end with 75.
trap 'scontrol_signal=1; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1
trap 'scontrol_signal=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM
while :; do # a signal ends `wait` early
    scontrol_signal=
    code=0
    wait "$pid" || code=$?
    [[ -n $scontrol_signal ]] || break
done
echo "train.sh ended with $code"
if ((code == 75)); then # stopped and resumable: back into the queue
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
