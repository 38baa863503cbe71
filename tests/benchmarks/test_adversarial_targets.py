import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import adversarial_targets as targets
from rl import config as rl_config


def _game(place: Path, *lines: dict[str, float]) -> Path:
    place.mkdir()
    text = "".join(json.dumps({f"adversarial/{k}": v for k, v in line.items()}) + "\n" for line in lines)
    (place / "episode_metrics.jsonl").write_text(text)
    cfg = rl_config.load(None, ["adversarial.collapse.min_reward_std=0.25"])
    (place / "config.yaml").write_text(rl_config.to_yaml(cfg))
    return place


def test_signs_stand_in_the_table_with_the_bounds_of_their_run(tmp_path: Path) -> None:
    old = {"action_std": 0.5, "reward_std": 0.2, "token_top_share": 0.1}
    new = old | {"reward_raw_std_share": 1.0}
    cell = {"ratio": {"mean": 0.9, "low": 0.8, "high": 1.0}}
    measured: dict[str, dict[str, Any]] = {whose: {} for whose, _ in targets.MEASURES}
    for whose, measure in targets.MEASURES:
        measured[whose][measure] = cell
    rows = []
    for seed, game in enumerate([
        _game(tmp_path / "new", new, new | {"action_std": 0.6, "reward_raw_std_share": 0.4}),
        _game(tmp_path / "old", old),  # begun before the raw rewards were watched
    ]):  # fmt: skip
        row = {"seed": seed, "signs": targets.signs(game), "bounds": targets.bounds(game)}
        rows.append(row | dict.fromkeys(targets.AGAINST, measured))
    table = targets.table(rows, argparse.Namespace(iterations=2, episodes=4))
    assert "action_std 0.05 to 0.95; reward_std at least 0.25; reward_raw_std_share at least 0.1; token" in table
    assert "action_std 0.5 to 0.6; reward_std 0.2 to 0.2; reward_raw_std_share 0.4 to 1; token_top" in table
    assert "| all | control | 0.900 [0.900, 0.900] |" in table  # the same in both seeds
    assert "| action_std 0.5 to 0.5; reward_std 0.2 to 0.2; token_top_share 0.1 to 0.1 |" in table
