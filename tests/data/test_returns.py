"""Advantages and returns against numbers worked out by hand and against a float64 definition by sums."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.config import TimeoutBootstrap
from rl.data.returns import gae, next_values


def column(values: list[float]) -> Tensor:
    return torch.tensor(values)[:, None]


def flags(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)[:, None]


def advantages_by_definition(case: dict[str, Tensor], gamma: float, lam: float, mode: TimeoutBootstrap) -> Tensor:
    """A_t as the explicit sum of (gamma lam)^k delta_{t+k} until the row's episode ends, one number at a time."""
    T, E = case["rewards"].shape
    result = torch.zeros(T, E, dtype=torch.float64)
    for e in range(E):
        for t in range(T):
            weight, k = 1.0, t
            while k < T and bool(case["valid"][k, e]):
                if case["terminated"][k, e]:
                    after = 0.0
                elif case["truncated"][k, e]:
                    after = {
                        TimeoutBootstrap.final_obs: float(case["next_values"][k, e]),
                        TimeoutBootstrap.current_value: float(case["values"][k, e]),
                        TimeoutBootstrap.none: 0.0,
                    }[mode]
                else:
                    after = float(case["next_values"][k, e])
                delta = float(case["rewards"][k, e]) + gamma * after - float(case["values"][k, e])
                result[t, e] += weight * delta
                if case["terminated"][k, e] or case["truncated"][k, e]:
                    break
                weight, k = weight * gamma * lam, k + 1
    return result


def random_case(seed: int, T: int, E: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    case = {n: torch.randn(T, E, generator=g, dtype=dtype) for n in ("rewards", "values", "next_values")}
    case |= {n: torch.rand(T, E, generator=g) < 0.2 for n in ("terminated", "truncated")}
    case["valid"] = torch.rand(T, E, generator=g) < 0.85
    return case


def run(case: dict[str, Tensor], gamma: float, lam: float, mode: Any = TimeoutBootstrap.final_obs) -> Any:
    names = ("rewards", "values", "next_values", "terminated", "truncated", "valid")
    return gae(*(case[n] for n in names), gamma, lam, mode)


def test_advantages_of_an_episode_that_ends_and_one_that_begins() -> None:
    # gamma .5, lambda .5: deltas 1 + .5*2 - 1 = 1; 2 + 0 - 2 = 0 (terminated); 3 + .5*4 - 1 = 4.
    advantages, returns = gae(
        column([1.0, 2, 3]), column([1.0, 2, 1]), column([2.0, 99, 4]),
        flags([0, 1, 0]), flags([0, 0, 0]), flags([1, 1, 1]), 0.5, 0.5,
    )  # fmt: skip
    assert advantages[:, 0].tolist() == [1.0, 0.0, 4.0]
    assert returns[:, 0].tolist() == [2.0, 2.0, 5.0]


def test_a_delta_reaches_back_with_gamma_times_lambda() -> None:
    # deltas: 0 + .5*2 - 1 = 0; 4 + .5*0 - 2 = 2. A_0 = 0 + .25 * 2.
    advantages, _ = gae(
        column([0.0, 4]), column([1.0, 2]), column([2.0, 0]), flags([0, 0]), flags([0, 0]), flags([1, 1]), 0.5, 0.5
    )
    assert advantages[:, 0].tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (TimeoutBootstrap.final_obs, [1 + 0.5 * 8 - 2]),
        (TimeoutBootstrap.current_value, [1 + 0.5 * 2 - 2]),
        (TimeoutBootstrap.none, [1 - 2]),
    ],
)
def test_a_time_limit_bootstraps_from_what_the_mode_says_and_cuts_the_recursion(
    mode: TimeoutBootstrap, expected: list[float]
) -> None:
    advantages, _ = gae(
        column([1.0, 100]), column([2.0, 0]), column([8.0, 0]), flags([0, 0]), flags([1, 0]), flags([1, 1]), 0.5, 1.0,
        mode,
    )  # fmt: skip
    assert advantages[:1, 0].tolist() == expected  # the 100 of the next episode is not in it


@pytest.mark.parametrize("mode", list(TimeoutBootstrap))
def test_a_step_that_is_terminated_and_truncated_is_a_termination(mode: TimeoutBootstrap) -> None:
    advantages, _ = gae(column([1.0]), column([2.0]), column([8.0]), flags([1]), flags([1]), flags([1]), 0.5, 1.0, mode)
    assert advantages.item() == -1.0


def test_lambda_one_gives_n_step_returns() -> None:
    # Rewards 1, 2, 4 and a bootstrap of 8 at gamma .5: 1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4.
    _, returns = gae(
        column([1.0, 2, 4]), column([5.0, -3, 7]), column([-3.0, 7, 8]),
        flags([0, 0, 0]), flags([0, 0, 0]), flags([1, 1, 1]), 0.5, 1.0,
    )  # fmt: skip
    assert returns[:, 0].tolist() == [4.0, 6.0, 8.0]


def test_lambda_zero_gives_one_step_errors() -> None:
    case = random_case(0, 6, 3) | {"valid": torch.ones(6, 3, dtype=torch.bool)}
    advantages, _ = run(case, 0.9, 0.0)
    expected = case["rewards"] + 0.9 * case["next_values"] * ~case["terminated"] - case["values"]
    torch.testing.assert_close(advantages, expected)


def test_a_row_that_is_no_transition_contributes_nothing_whatever_it_holds() -> None:
    # The reset row of NEXT_STEP autoreset between two episodes.
    nan = float("nan")
    advantages, returns = gae(
        column([1.0, nan, 3]), column([2.0, nan, 1]), column([nan, nan, 4]),
        flags([1, 0, 0]), flags([0, 0, 0]), flags([1, 0, 1]), 0.5, 0.9,
    )  # fmt: skip
    assert advantages[:, 0].tolist() == [-1.0, 0.0, 4.0]
    assert returns[:, 0].tolist() == [1.0, 0.0, 5.0]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    T=st.integers(1, 9),
    E=st.integers(1, 4),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    mode=st.sampled_from(list(TimeoutBootstrap)),
)
def test_advantages_equal_the_sum_that_defines_them(
    seed: int, T: int, E: int, gamma: float, lam: float, mode: TimeoutBootstrap
) -> None:
    case = random_case(seed, T, E)
    advantages, returns = run(case, gamma, lam, mode)
    expected = advantages_by_definition(case, gamma, lam, mode)
    torch.testing.assert_close(advantages, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(returns, torch.where(case["valid"], expected + case["values"], 0.0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_float32_agrees_with_float64(seed: int) -> None:
    case = random_case(seed, 24, 3)
    single = {n: v.float() if v.is_floating_point() else v for n, v in case.items()}
    torch.testing.assert_close(run(single, 0.99, 0.95)[0].double(), run(case, 0.99, 0.95)[0], rtol=1e-4, atol=1e-5)


def test_environments_do_not_mix() -> None:
    case = random_case(3, 8, 4)
    alone = [run({n: v[:, e : e + 1] for n, v in case.items()}, 0.9, 0.8)[0] for e in range(4)]
    torch.testing.assert_close(run(case, 0.9, 0.8)[0], torch.cat(alone, 1))


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3, 3), *([torch.zeros(2, 3, dtype=torch.bool)] * 3), 1, 1)


def test_next_values_are_those_of_the_next_row_except_where_time_cut_an_episode() -> None:
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    index = (torch.tensor([0, 2]), torch.tensor([1, 0]))
    found = next_values(values, torch.tensor([4.0, 40.0]), index, torch.tensor([-1.0, -2.0]))
    assert found.tolist() == [[2.0, -1.0], [3.0, 30.0], [-2.0, 40.0]]
