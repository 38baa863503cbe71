import pytest
import torch

from rl.envs.arm_expert import expert_actions
from rl.envs.arm_reach import ArmReach
from rl.envs.gymnasium_adapter import GymnasiumEnv
from rl.training.policy_evaluation import Evaluation, Policy, evaluate
from tests.envs.counter_env import CounterEnv


def zero(observation: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(observation), 1)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_environment_gives_as_many_episodes_however_long_they_are(mode: str) -> None:
    from gymnasium.vector import AutoresetMode

    lengths = iter([[1], [4]])
    env = GymnasiumEnv(lambda: CounterEnv(next(lengths), ["truncated"]), 2, autoreset=AutoresetMode(mode))
    found = evaluate(Policy(zero), env, 5, seed=0)
    assert found.lengths == [1, 1, 1, 4, 4]  # three of the first, two of the second
    assert found.returns == [1.0, 1.0, 1.0, 10.0, 10.0] and found.successes is None
    assert found.success_rate is None and found.mean_return == pytest.approx(23 / 5)


def test_the_expert_is_measured_as_an_expert() -> None:
    found = evaluate(Policy(expert_actions), ArmReach(50, random_phase=False), 100, seed=1)
    assert found.success_rate is not None and found.success_rate >= 0.98
    assert found.lengths == [100] * 100
    numbers = found.numbers()
    assert numbers["episodes"] == 100 and numbers["success_interval"][1] <= 1.0


def test_the_episodes_are_a_function_of_the_seed() -> None:
    returns = [evaluate(Policy(expert_actions), ArmReach(4, random_phase=False), 8, seed=s).returns for s in (1, 1, 2)]
    assert returns[0] == returns[1] != returns[2]


def test_a_policy_is_told_of_the_begin_of_episodes() -> None:
    told: list[object] = []
    env = GymnasiumEnv(lambda: CounterEnv([2], ["terminated"]), 1)
    evaluate(Policy(zero, lambda ended: told.append(None if ended is None else ended.tolist())), env, 2, seed=0)
    assert told == [None, [False], [True], [False], [True]]


def test_numbers_of_an_evaluation() -> None:
    found = Evaluation([1.0, 3.0], [10, 20], [True, False]).numbers()
    assert (found["mean_return"], found["mean_length"], found["success_rate"]) == (2.0, 15.0, 0.5)
    assert found["return_std"] == pytest.approx(2**0.5)


def test_fewer_episodes_than_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="3 evaluation episodes are fewer than the 4 environments"):
        evaluate(Policy(expert_actions), ArmReach(4), 3, seed=0)
