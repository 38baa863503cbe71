"""Episodes of a deterministic policy, and what they say about it.

Letters: E environments.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rl.data.statistics import wilson_interval
from rl.envs.vector import VectorEnv
from rl.types import TensorTree


@dataclass
class Policy:
    """`act`: raw observations (E, ...) -> actions for the environment. `begin`: called with None before the first
    episodes and with ended (E,) bool after every step; a recurrent policy needs it."""

    act: Callable[[TensorTree], Tensor]
    begin: Callable[[Tensor | None], None] = field(default=lambda ended: None)


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes, in the order of environments and time."""

    returns: list[float]
    lengths: list[int]
    successes: list[bool] | None  # None: the task does not say what success is

    @property
    def mean_return(self) -> float:
        return sum(self.returns) / len(self.returns)

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else sum(self.successes) / len(self.successes)

    @property
    def success_interval(self) -> tuple[float, float] | None:
        """Wilson, 95 %."""
        return None if self.successes is None else wilson_interval(sum(self.successes), len(self.successes))

    def numbers(self) -> dict[str, Any]:
        """JSON data."""
        n = len(self.returns)
        spread = (sum((r - self.mean_return) ** 2 for r in self.returns) / max(n - 1, 1)) ** 0.5
        interval = self.success_interval
        return {
            "episodes": n, "success_rate": self.success_rate,
            "success_interval": None if interval is None else list(interval), "mean_return": self.mean_return,
            "return_std": spread, "mean_length": sum(self.lengths) / n,
        }  # fmt: skip


@torch.no_grad()
def evaluate(policy: Policy, env: VectorEnv, episodes: int, seed: int) -> Evaluation:
    """The first `episodes / E` episodes of every environment (a few more in the first ones when that is no whole
    number): a fixed number of each, so that short episodes are not counted more often.

    Raises ValueError for fewer episodes than environments.
    """
    E = env.num_envs
    if episodes < E:
        raise ValueError(f"{episodes} evaluation episodes are fewer than the {E} environments")
    quota = torch.full((E,), episodes // E, device=env.device) + (torch.arange(E, device=env.device) < episodes % E)
    done = torch.zeros_like(quota)
    running_return, running_length = torch.zeros(E, device=env.device), torch.zeros(E, device=env.device)
    found: list[tuple[int, int, float, int, bool | None]] = []  # environment, episode, return, length, success
    observation = env.reset(seed)
    policy.begin(None)
    while bool((done < quota).any()):
        step = env.step(policy.act(observation))
        running_return += torch.where(step.valid, step.reward, 0.0)
        running_length += step.valid
        ended = (step.terminated | step.truncated) & step.valid
        for i in (ended & (done < quota)).nonzero()[:, 0].tolist():
            success = bool(step.infos["success"][i]) if "success" in step.infos else None
            found.append((i, int(done[i]), float(running_return[i]), int(running_length[i]), success))
        done += ended
        begun = ended | ~step.valid
        running_return, running_length = (torch.where(begun, 0.0, x) for x in (running_return, running_length))
        policy.begin(begun)
        observation = step.observation
    found.sort()
    successes = [bool(row[4]) for row in found] if found[0][4] is not None else None
    return Evaluation([row[2] for row in found], [row[3] for row in found], successes)
