import pytest

from rl.training import seed_intervals


def run(success: float, value: float, episodes: int = 100, spread: float = 5.0) -> dict:
    return {"success_rate": success, "mean_return": value, "episodes": episodes, "return_std": spread}


def test_two_seeds_give_the_interval_of_their_values_however_many_episodes_they_have() -> None:
    # Resamples of two seeds have both, or one of them twice in a quarter of the cases each.
    runs = [run(0.9, -10.0, 100_000), run(0.7, -20.0, 100_000)]
    success, value = seed_intervals.of_success(runs), seed_intervals.of_return(runs)
    assert (success.low, success.mean, success.high) == pytest.approx((0.7, 0.8, 0.9))
    assert (value.low, value.mean, value.high) == pytest.approx((-20.0, -15.0, -10.0))
    assert seed_intervals.basis(runs) == "2 seeds"


def test_one_seed_gives_the_interval_of_its_episodes() -> None:
    success, value = seed_intervals.of_success([run(0.5, -20.0)]), seed_intervals.of_return([run(0.5, -20.0)])
    # Wilson, 50 of 100: 0.5 +- 1.96 / 20 / sqrt(1 + 1.96^2 / 100)
    assert (success.low, success.mean, success.high) == pytest.approx((0.4038, 0.5, 0.5962), abs=1e-4)
    assert (value.low, value.mean, value.high) == pytest.approx((-20.98, -20.0, -19.02), abs=1e-4)  # 1.96 * 5 / 10
    assert seed_intervals.basis([run(0.5, -20.0)]) == "100 episodes"
