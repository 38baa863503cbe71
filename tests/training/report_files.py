"""What the phases of a pipeline leave on disk, made up: two phases, one of them measured beside random actions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from rl.training import media


def _interval(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "count": 12}


def _picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def make_pipeline(directory: Path) -> None:
    for phase in ("teacher", "student"):
        run = directory / phase
        run.mkdir(parents=True)
        status = {"phase": phase, "state": "done", "step": 40, "total": 40}
        (run / "status.json").write_text(json.dumps(status))
        lines = [{"episode": e, f"{phase}/loss": 5 / e, f"{phase}/return": None if e == 2 else e / 40, "env_steps": e}
                 for e in range(1, 41)]  # fmt: skip
        (run / "episode_metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        provenance = {
            "started": "2026-01-01T00:00:00+00:00", "host": "h", "python": "3.11.7", "commit": f"{phase}-commit",
            "command": ["-m", "rl.training", "<&>"], "versions": {"torch": "2.12.0", "sapien": None},
        }  # fmt: skip
        (run / "provenance.jsonl").write_text(
            json.dumps(provenance | {"commit": "old"}) + "\n" + json.dumps(provenance)
        )
        (run / "model_config.yaml").write_text("trunk:\n  num_layers: 2\n")
        for n in (8, 10):
            media.sample_picture(
                {"Last": _picture(n), "Next": _picture(ord(phase[0]) + n)}, run / "samples" / f"episode_{n}.png"
            )
        frames = [media.video_frame(_picture(0), _picture(1), _picture(2))] * 4
        media.save_video(run / "videos" / "episode_10.mp4", frames)
    (directory / "config.yaml").write_text("environment:\n  instruction: push <b> & pull\n")
    (directory / "times.json").write_text(json.dumps({"teacher": 90.0, "evaluation of student": 30.0}))
    evaluation = directory / "evaluation"
    media.save_video(evaluation / "student.videos" / "explorer_episode_0.mp4", [_picture(3)] * 3)
    comparison = {
        "explore/wrist_voxels": {"difference": _interval(8, 5, 11), "ratio": _interval(1.6, 1.4, 1.8)},
        "explore/objects_moved": {"difference": _interval(0.1, -0.2, 0.4), "ratio": None},
    }
    ours = {"explore/wrist_voxels": _interval(21.5, 20, 23), "explore/objects_moved": _interval(0.5, 0.2, 0.8)}
    ours |= {
        "auroc/high_loss/entropy": _interval(0.28, 0.23, 0.33),
        "auroc/high_loss/disagreement": _interval(0.69, 0.65, 0.72),
        "auroc/unfamiliar/num_objects=24 a=<b>/disagreement": _interval(0.52, 0.46, 0.58),
        "auroc/unfamiliar/num_objects=24 a=<b>/nll": _interval(0.6, 0.55, 0.65),
        "probe/memory": _interval(0.62, 0.6, 0.64), "probe/observation": _interval(0.51, 0.48, 0.54),
        "probe/memory_minus_observation": _interval(0.11, 0.08, 0.14),
    }  # fmt: skip
    random = {"explore/wrist_voxels": _interval(13.5, 12, 15), "explore/objects_moved": _interval(0.4, 0.1, 0.7)}
    result = {
        "phase": "student", "checkpoint": "checkpoint-40", "episodes": 12, "policy": "explorer", "notes": ["a <note>"],
        "measures": ours, "totals": {"wrist_voxels": 99}, "videos": ["student.videos/explorer_episode_0.mp4"],
        "baseline": {"policy": "random", "measures": random, "totals": {"wrist_voxels": 50}, "comparison": comparison},
        "against_teacher": {"explorer": {"frame/nll": {"difference": _interval(-0.3, -0.4, -0.2), "ratio": None}}},
    }  # fmt: skip
    (evaluation / "student.json").write_text(json.dumps(result))
