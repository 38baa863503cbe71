"""What `train.sh play` writes down while it plays: a table of steps and the statistics of episodes."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.data.statistics import wilson_interval
from rl.training.atomic_io import atomic_path
from rl.types import TensorTree, VectorStep


class DataLog:
    """Rows of the chosen environments: what the policy saw, did and got. Pictures are left out."""

    def __init__(self, env_ids: Sequence[int], steps: int) -> None:
        self.env_ids, self.steps = list(env_ids), steps
        self.rows: list[dict[str, Any]] = []

    def add(self, t: int, observation: TensorTree, actions: Tensor, step: VectorStep) -> None:
        """`observation` is what led to `actions`; nothing is added from step `steps` on."""
        if t >= self.steps:
            return
        parts = {"observation": observation} if isinstance(observation, Tensor) else observation
        for i in self.env_ids:
            row: dict[str, Any] = {"step": t, "env": i}
            for name, values in parts.items():
                if values.dim() <= 2:
                    row |= _numbered(name, values[i])
            row |= _numbered("action", actions[i].float())
            row |= {"reward": float(step.reward[i]), "terminated": int(step.terminated[i])}
            row |= {"truncated": int(step.truncated[i]), "valid": int(step.valid[i])}
            row |= {name: float(values[i]) for name, values in step.infos.items()}
            self.rows.append(row)

    def write(self, path: Path) -> None:
        """CSV, one row a step and environment."""
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)


def _numbered(name: str, values: Tensor) -> dict[str, float]:
    return {f"{name}_{i}": float(v) for i, v in enumerate(values.flatten())}


class Episodes:
    """Returns and successes of the episodes that ended."""

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.running = torch.zeros(num_envs, device=device)
        self.returns: list[float] = []
        self.successes: list[bool] = []
        self.env_steps = 0

    def add(self, step: VectorStep) -> None:
        self.running += torch.where(step.valid, step.reward, 0.0)
        self.env_steps += int(step.valid.sum())
        ended = (step.terminated | step.truncated) & step.valid
        for i in ended.nonzero()[:, 0].tolist():
            self.returns.append(float(self.running[i]))
            if "success" in step.infos:
                self.successes.append(bool(step.infos["success"][i]))
        self.running = torch.where(ended | ~step.valid, 0.0, self.running)

    def numbers(self) -> dict[str, Any]:
        """JSON data; None where no episode ended or the task does not tell success."""
        n, s = len(self.returns), self.successes
        return {
            "env_steps": self.env_steps, "episodes": n, "mean_return": sum(self.returns) / n if n else None,
            "success_rate": sum(s) / len(s) if s else None,
            "success_interval": list(wilson_interval(sum(s), len(s))) if s else None,
        }  # fmt: skip
