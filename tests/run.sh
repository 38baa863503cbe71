#!/usr/bin/env bash
# The one test command.
#   bash tests/run.sh              set-up, lint, spelling, types, import rules, all tests but the slow ones
#   bash tests/run.sh --slow       the slow ones too
#   bash tests/run.sh isaaclab     what needs the real Isaac Lab (bash setup.sh isaaclab), and the core on its versions
#   bash tests/run.sh gr00t        the tests of GR00T on LeRobot's N1.7 (bash setup.sh gr00t)
#   bash tests/run.sh PART ARGS... of isaaclab and gr00t: other files instead, or flags as well: gr00t --slow -k learns
#   bash tests/run.sh ARGS...      only pytest, with these arguments: bash tests/run.sh tests/envs -k history
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
REPO="$PWD"
die() { printf 'tests/run.sh: %s\n' "$1" >&2; exit 4; }
source scripts/part_python.sh

# part NAME FLAGS_AND_FILES... -- FILES...: pytest in the environment of a part; files that are named take the place of
# the part's FILES, flags alone (--slow, -k history) are added to them.
part() {
    local name="$1" python=".venv-$1/bin/python" given=() named='' value=''
    shift
    while [[ "$1" != -- ]]; do
        given+=("$1")
        # What follows such a flag is its value, even where a file has that name.
        [[ -n $value || $1 == -* || ! -e "${1%%::*}" ]] || named=yes
        if [[ $1 =~ ^-[kmnpcWo]$ ]]; then value=yes; else value=''; fi
        shift
    done
    shift
    [[ -n $named ]] || given+=("$@")
    export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1
    exec "$python" -m pytest "${given[@]}"
}

if [[ "${1:-}" == isaaclab ]]; then
    shift
    require_part isaaclab "Isaac Lab" 9 "this part of the tests"
    core=(tests/sims/test_isaaclab.py tests/sims/test_isaaclab_launch.py tests/models tests/algorithms/test_ppo.py tests/algorithms/test_sac.py
        tests/algorithms/test_a2c.py tests/algorithms/test_diffusion.py tests/algorithms/test_compiled.py
        tests/algorithms/test_ppo_losses.py tests/algorithms/test_ppo_against_rsl_rl.py
        tests/data/test_free_memory.py tests/data/test_replay.py tests/data/test_returns.py tests/data/test_rollout.py
        tests/envs/test_arm_reach.py tests/training/test_gr00t_training.py tests/training/test_micro_batches.py
        tests/training/test_on_policy_phase.py tests/training/test_off_policy_phase.py)
    part isaaclab "$@" -- tests/isaaclab "${core[@]}"
fi

if [[ "${1:-}" == gr00t ]]; then
    shift
    require_part gr00t LeRobot 8 "this part of the tests"
    export GR00T_BACKEND=n1.7
    part gr00t "$@" -- tests/models/test_gr00t.py tests/models/test_gr00t_cameras.py tests/models/test_gr00t_checkpoint.py \
        tests/models/test_gr00t_lerobot.py tests/models/test_gr00t_prompt.py tests/models/test_gr00t_state.py \
        tests/training/test_gr00t_training.py tests/training/test_gr00t_base.py tests/training/test_gr00t_half.py \
        tests/training/test_gr00t_released.py
fi

# Without a Vulkan driver (exit 4 after the packages are in) everything that draws nothing can still be tested.
bash setup.sh || [[ -f .venv/.setup-stamp ]] || exit 4

export PATH="$PWD/.venv/bin:$PATH"
# One thread a worker: the same numbers on every machine, and two workers do not fight for two cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 # no test fetches anything
export MYPY_CACHE_DIR=.cache/mypy RUFF_CACHE_DIR=.cache/ruff

if [[ $# -gt 0 && "$*" != --slow ]]; then
    exec python -m pytest "$@"
fi

failed=()
stage() { # stage NAME COMMAND...: runs all, so that one start shows every complaint
    local name="$1" output
    shift
    if output="$("$@" 2>&1)"; then printf '%-8s ok\n' "$name"; else printf '%-8s FAILED\n%s\n' "$name" "$output"; failed+=("$name"); fi
}
stage lint ruff check .
stage format ruff format --check .
stage spelling codespell
stage types mypy
stage imports lint-imports --no-cache
[[ ${#failed[@]} -eq 0 ]] || printf '\nFAILED before the tests: %s (see above)\n\n' "${failed[*]}"

echo "left out: tests/isaaclab, which needs Isaac Lab (bash setup.sh isaaclab, then bash tests/run.sh isaaclab)"
python -m pytest -n "${PYTEST_WORKERS:-2}" --durations=15 --ignore tests/isaaclab "$@"
code=$?
[[ $code -ne 0 || ${#failed[@]} -eq 0 ]] || code=1
exit "$code"
