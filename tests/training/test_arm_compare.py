import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rl import config as rl_config
from rl.training import arm_compare, cli, policies, train_arm
from tests.training import policy_runs
from tests.training.run_here import run_here

SMALL = [
    "ppo.num_envs=4", "ppo.n_steps=16", "ppo.minibatch_size=0", "ppo.network.hidden=[8]", "arm.eval_every=64",
    "arm.eval_episodes=2", "arm.final_episodes=4", "logging.tensorboard=false", "--device", "cpu",
]  # fmt: skip


def fake(algorithm: str, seed: int, rate: float) -> dict:
    curve = [{"env_steps": 50, "success_rate": rate / 2, "mean_return": -30.0}]
    return {
        "algorithm": algorithm, "task": "ArmReach-v1", "seed": seed, "env_steps": 100, "success_rate": rate,
        "episodes": 100, "mean_return": -20.0 - seed, "return_std": 5.0, "steps_per_second": 10.0,
        "wall_seconds": 10.0, "curve": curve,
    }  # fmt: skip


def test_algorithms_are_compared_with_the_same_seeds_and_the_comparison_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl_config, "ALGORITHMS", ("PPO", "A2C"))
    argv = ["--compare", "--compare-steps", "128", "--compare_seeds", "2", "--output_dir", str(tmp_path), *SMALL]
    assert run_here(train_arm.main, argv, "arm") == 0
    places = [tmp_path / f"{a}_seed{s}" for a in ("ppo", "a2c") for s in (0, 1)]
    assert all(policy_runs.result(p)["env_steps"] == 128 for p in places)
    table = (tmp_path / "comparison.md").read_text()
    assert "| PPO | 0 1 |" in table and "| A2C | 0 1 |" in table
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "comparison.json").read_text())["runs"]) == 4
    times = [(p / "result.json").stat().st_mtime_ns for p in places]
    (places[3] / "result.json").unlink()  # as if it had been stopped before its end
    assert run_here(train_arm.main, argv, "arm") == 0
    again = [(p / "result.json").stat().st_mtime_ns for p in places]
    assert again[:3] == times[:3] and again[3] != times[3]


def test_the_interval_is_over_seeds_and_over_the_episodes_of_a_single_seed() -> None:
    table = arm_compare.markdown([fake("PPO", 0, 0.9), fake("PPO", 1, 0.7), fake("SAC", 0, 1.0)], 100)
    # Resamples of two seeds reach from one of them twice to the other one twice.
    assert "| PPO | 0 1 | 0.800 [0.700, 0.900] | -20.50 [-21.00, -20.00] | 2 seeds | 10 | 10 |" in table
    # Wilson, 100 of 100; 1.96 * 5 / 10 around the mean.
    assert "| SAC | 0 | 1.000 [0.963, 1.000] | -20.00 [-20.98, -19.02] | 100 episodes | 10 | 10 |" in table


def compared(folder: Path, *extra: str) -> list[str]:
    """Repeats a comparison of PPO alone with a training that only writes its files; the runs that were begun."""
    begun = []

    def train(single: cli.Args) -> None:
        place = single.output_dir
        begun.append(place.name)
        place.mkdir(parents=True)
        policies.prefer_small_machine(single.config, "arm")
        (place / "config.yaml").write_text(rl_config.to_yaml(single.config))
        (place / "result.json").write_text(json.dumps(fake("PPO", 0, 0.9)))

    arm_compare.compare(cli.parse("arm", ["--compare", "--output_dir", str(folder), *extra]), train)
    return begun


def test_numbers_of_another_configuration_are_not_shown_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_config, "ALGORITHMS", ("PPO",))
    monkeypatch.setattr(arm_compare, "draw", lambda *_: None)
    assert compared(tmp_path, "--compare-steps", "128") == ["ppo_seed0"]
    harmless = ("--compare_seeds", "2", "logging.tensorboard=false")
    assert compared(tmp_path, "--compare-steps", "128", *harmless) == ["ppo_seed1"]
    table = (tmp_path / "comparison.md").read_bytes()
    other = ("--compare-steps", "256", "--device", "cuda", "ppo.gamma=0.5", "arm.final_episodes=7")
    with pytest.raises(ValueError, match="another --output_dir, or remove") as refused:
        compared(tmp_path, *other)
    assert (
        "ppo_seed0/config.yaml: this run of the comparison is done, with another configuration: arm.eval_every "
        "12 -> 25; arm.final_episodes 1000 -> 7; arm.steps 128 -> 256; ppo.gamma 0.8 -> 0.5; training.device cpu -> "
        "cuda. "
    ) in str(refused.value)
    assert (tmp_path / "comparison.md").read_bytes() == table


def test_flags_of_a_single_run_do_not_go_with_a_comparison(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert run_here(train_arm.main, ["--compare", "--overwrite", "--output_dir", str(tmp_path)], "arm") == 4
    assert "leave --resume and --overwrite out" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("given", "every"), [([], 1000), (["arm.eval_every=5000"], 5000), (["--compare-steps", "500000"], 20_000)]
)
def test_a_short_comparison_still_has_curves(tmp_path: Path, given: list[str], every: int) -> None:
    args = cli.parse("arm", ["--compare", "--compare-steps", "10000", *given])
    assert arm_compare._single(args, "SAC", 0, tmp_path).config.arm.eval_every == every


def test_a_curve_of_one_point_can_be_seen(tmp_path: Path) -> None:
    arm_compare.draw([fake("PPO", 0, 0.9)], tmp_path / "picture.png")
    picture = np.rint(255 * imread(tmp_path / "picture.png")[:, 600:, :3])  # the right one: it has no legend
    first_color = np.array([0x1F, 0x77, 0xB4])  # of matplotlib's default cycle
    assert (np.abs(picture - first_color).sum(-1) < 12).sum() > 5
