"""SAC and the diffusion policy on two ranks: equal parameters, and the global batch of one rank."""

from pathlib import Path

import pytest

from rl.config import TrainingConfig
from rl.training.parallel_utils import ParallelContext
from tests.helpers.ranks import run_ranks
from tests.training import off_policy_ranks


def test_two_ranks_hold_equal_parameters_and_play_different_episodes(tmp_path: Path) -> None:
    one, two = run_ranks(off_policy_ranks.train, 2, tmp_path)
    for name in ("sac", "dit"):
        assert one[name]["hash"] == two[name]["hash"] and one[name]["own"] != two[name]["own"]
        assert one[name]["units"] == 8 and one[name]["steps"] == 80  # over both ranks


def test_two_halves_of_a_batch_give_the_update_of_the_whole(tmp_path: Path) -> None:
    one, two = run_ranks(off_policy_ranks.gradients, 2, tmp_path)
    context = ParallelContext.create(TrainingConfig(device="cpu", num_threads=1))
    alone = off_policy_ranks.gradients(context)
    context.close()
    for name, values in alone.items():
        assert one[name] == two[name]
        assert one[name] == pytest.approx(values, abs=2e-5), name
