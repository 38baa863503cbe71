"""What GR00T takes of a device's memory, part by part, before anything is allocated for training.

Weights, gradients and Adam's moments are counted; what an update keeps for its backward is estimated from the shapes.
The simulator's own memory and the allocator's overhead (10 to 20 %) come on top.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rl.config import Config
from rl.models import gr00t_backend
from rl.models.gr00t import GR00TActorCritic, trainable_of
from rl.models.gr00t_backend import part_of

GB = 1e9
# Widths that one transformer layer keeps for each token: both norms and their outputs, q, k, v, the attended values
# and the hidden layer of the MLP with its activation (4 widths each).
KEPT_WIDTHS = 16
PICTURE_TOKENS = 64  # of a camera with 256 x 256 px: patches of 16, four merged


@dataclass
class Memory:
    """Bytes of one process. `parts`: name, parameters, of them trained at the end, bytes of weights."""

    parts: list[tuple[str, int, int, int]]
    gradients: int
    moments: int
    activations: int  # estimate
    rollout: int

    @property
    def weights(self) -> int:
        return sum(p[3] for p in self.parts)

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations + self.rollout

    def lines(self) -> list[str]:
        rows = [f"{'GR00T part':<12} {'parameters':>14} {'trained':>14} {'weights GB':>11}"]
        rows += [f"{n:<12} {count:>14,} {trained:>14,} {size / GB:>11.3f}" for n, count, trained, size in self.parts]
        rows.append(
            f"memory of one process: weights {self.weights / GB:.2f} GB, gradients {self.gradients / GB:.2f}, "
            f"Adam {self.moments / GB:.2f}, activations (estimate) {self.activations / GB:.2f}, rollout "
            f"{self.rollout / GB:.2f}, together {self.total / GB:.2f} GB"
        )
        return rows


def report(policy: GR00TActorCritic, cfg: Config) -> Memory:
    """Of all stages, also those that have not begun. Works on the meta device."""
    model, g, ppo = policy.model, cfg.gr00t, cfg.ppo
    trained = {id(p) for stage in g.stages for p in trainable_of(model, stage, g)}
    parts: dict[str, list[int]] = {}
    for name, p in model.named_parameters():
        row = parts.setdefault(part_of(name), [0, 0, 0])
        row[0] += p.numel()
        row[1] += p.numel() if id(p) in trained else 0
        row[2] += p.numel() * p.element_size()
    heads: list[nn.Parameter] = [p for n, p in policy.named_parameters() if not n.startswith("model.")]
    count = sum(p.numel() for p in heads)
    parts["heads"] = [count, count, 4 * count]
    moving = 4 * sum(row[1] for row in parts.values())
    rows = ppo.minibatch_size or ppo.num_envs * ppo.n_steps // ppo.num_minibatches
    decision = 4 * (policy.layout.width + policy.state_dims)
    return Memory(
        [(name, row[0], row[1], row[2]) for name, row in parts.items()], moving, 2 * moving,
        activations(policy, cfg, rows // max(cfg.training.gradient_accumulation_steps, 1)),
        ppo.num_envs * ppo.n_steps * decision,
    )  # fmt: skip


def activations(policy: GR00TActorCritic, cfg: Config, rows: int) -> int:
    """Bytes that the backward of `rows` decisions needs; gradients pass the transformer whatever of it trains."""
    if not cfg.gr00t.stages:
        return 0
    element = 4 if cfg.gr00t.dtype == "float32" else 2
    model = policy.model
    names = [n for n, _ in model.named_parameters() if part_of(n) == "dit"]
    blocks = sum(n.endswith(("to_q.weight", "to_q.base_layer.weight")) for n in names)
    per_token = KEPT_WIDTHS * model.state_width * element
    seen = (len(policy.pictures) * PICTURE_TOKENS + len(model.prompt)) * blocks // 2 * 2 * model.state_width * element
    return rows * ((model.horizon + 1) * blocks * per_token + seen)


def planned(cfg: Config) -> Memory:
    """Of random weights of `gr00t.size` on the meta device, for a robot with one camera, 32 numbers and 7 actions."""
    observation = gym.spaces.Dict(
        {"state": gym.spaces.Box(-1, 1, (32,), np.float32), "camera": gym.spaces.Box(0, 255, (3, 256, 256), np.uint8)}
    )
    with torch.device("meta"):
        model = gr00t_backend.stub(cfg.gr00t.size)
        policy = GR00TActorCritic(model, observation, gym.spaces.Box(-1, 1, (7,), np.float32), cfg.gr00t)
    return report(policy, cfg)
