"""The speed tables of PPO and SAC: contenders, and what they write."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import arm_speed, gym_targets, ppo_speed, sac_speed

NAMED = {"algorithm", "task", "seed", "env_steps", "success_rate", "success_interval", "mean_return",
         "steps_per_second", "wall_seconds", "num_envs"}  # fmt: skip


def run(module: object, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", *argv])
    threads = torch.get_num_threads()
    try:
        module.main()  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads)


def test_cuda_graphs_are_a_contender_on_a_gpu_only() -> None:
    assert "ours_cuda_graphs" in ppo_speed.makers(4096, [128], "cuda", 0)
    assert list(ppo_speed.makers(8, [8], "cpu", 0)) == ["ours", "ours_compiled", "rsl_rl", "stable_baselines3"]


def test_ppo_is_measured_at_every_number_of_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "ppo.json"
    sizes = ("--num_envs", "8", "16", "--hidden", "8", "--rounds", "2", "--warmup", "0", "--threads", "1")
    run(ppo_speed, monkeypatch, *sizes, "--only", "ours", "rsl_rl", "stable_baselines3", "--json", str(place))
    rows = json.loads(place.read_text())["rows"]
    assert [(r["num_envs"], r["name"]) for r in rows] == [
        (n, name) for n in (8, 16) for name in ("ours", "rsl_rl", "stable_baselines3")
    ]
    assert all(r.keys() >= NAMED and r["steps_per_second"] <= r["best"] for r in rows)
    assert all(r["success_rate"] is r["success_interval"] is r["mean_return"] is None for r in rows)
    assert [r["env_steps"] for r in rows] == [2 * 24 * n for n in (8, 8, 8, 16, 16, 16)]


def test_what_was_measured_before_a_stop_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, step_rate = tmp_path / "arm.json", arm_speed.step_rate

    def stopped_at_four(num_envs: int, *args: Any) -> dict[str, float]:
        if num_envs == 4:
            raise KeyboardInterrupt
        return step_rate(num_envs, *args)

    monkeypatch.setattr(arm_speed, "step_rate", stopped_at_four)
    sizes = ("--num_envs", "2", "3", "4", "--steps", "5", "--repeats", "2", "--seed", "7")
    with pytest.raises(KeyboardInterrupt):
        run(arm_speed, monkeypatch, *sizes, "--json", str(place))
    rows = json.loads(place.read_text())["speed"]
    assert [(r["num_envs"], r["env_steps"], r["seed"]) for r in rows] == [(2, 2 * 5 * 2, 7), (3, 3 * 5 * 2, 7)]
    assert all(r.keys() >= NAMED and r["algorithm"] is None and r["wall_seconds"] > 0 for r in rows)


def test_the_parts_of_the_tables_of_learning_are_written_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(kind: str, *, stop_at: int) -> Any:
        calls = iter(range(1, 9))

        def part(*_: Any) -> list[dict[str, Any]]:
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return [{"name": kind, "steps_per_second": 1.0, "best": 1.0}]

        return part

    monkeypatch.setattr(ppo_speed, "makers", lambda *_: {"ours": dict})
    monkeypatch.setattr(ppo_speed, "measure", measured("PPO", stop_at=3))
    monkeypatch.setattr(sac_speed, "rows", lambda *_: {})
    monkeypatch.setattr(sac_speed, "table", measured("SAC", stop_at=2))
    for module, kept in ((ppo_speed, 2), (sac_speed, 1)):
        place = tmp_path / f"{module.__name__}.json"
        with pytest.raises(KeyboardInterrupt):
            run(module, monkeypatch, "--num_envs", "2", "3", "4", "--hidden", "8", "--json", str(place))
        assert len(json.loads(place.read_text())["rows"]) == kept


def test_sac_is_measured_against_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "sac.json"
    sizes = ("--hidden", "8", "--steps", "1", "--rounds", "2", "--num_envs", "4", "--batch_size", "16", "--no_compile")
    run(sac_speed, monkeypatch, *sizes, "--only", "SAC", "FastSAC C51", "--json", str(place))
    rows = json.loads(place.read_text())["rows"]
    assert [(r["name"], r["algorithm"]) for r in rows] == [
        ("Stable-Baselines3 SAC", "SAC"), ("SAC", "SAC"), ("FastSAC C51", "FASTSAC")
    ]  # fmt: skip
    assert all(r.keys() >= NAMED and r["batch_size"] == 16 for r in rows)
    assert rows[0]["wall_speedup"] == 1.0 and rows[1]["wall_speedup"] > 0


def test_an_unknown_row_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no rows \['SAK'\]; there are SAC, SAC C51"):
        run(sac_speed, monkeypatch, "--only", "SAK", "--no_compile", "--hidden", "8")


def test_classic_tasks_are_continued_and_their_table_has_targets_and_an_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def one(name: str, seed: int, args: object, place: Path) -> None:
        started.append(seed)
        if len(started) == 2:
            raise SystemExit(75)  # stopped
        place.parent.mkdir(parents=True, exist_ok=True)
        numbers = {"episodes": 100, "env_steps": 100_000, "mean_return": 490.0 + seed, "steps_per_second": 10.0}
        place.write_text(json.dumps(numbers))

    monkeypatch.setattr(gym_targets, "run", one)
    own = tmp_path / "own.json"
    argv = ("--tasks", "CartPole-v1/PPO", "--seeds", "2", "--results", str(tmp_path), "--json", str(own))
    with pytest.raises(SystemExit):
        run(gym_targets, monkeypatch, *argv)
    run(gym_targets, monkeypatch, *argv)
    assert started == [0, 1, 1]
    assert "| CartPole-v1 | PPO | 100000 | 500 | 490.5" in (tmp_path / "gym_targets.md").read_text()
    assert len(json.loads(own.read_text())["runs"]["CartPole-v1/PPO"]) == 2
    assert not (tmp_path / "gym_targets.json").exists()
