"""What GR00T takes of a device's memory, part by part, before anything is allocated for training.

Weights, gradients, Adam's moments and the copy to which an update may return are counted; what an update keeps for its
backward is estimated from the shapes. The simulator's own memory and the allocator's overhead (10 to 20 %) come on top.
"""

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rl.config import Config
from rl.models import gr00t_backend
from rl.models.gr00t import GR00TActorCritic, language_layers, trainable_of
from rl.models.gr00t_backend import Gr00tModel, part_of

GB = 1e9
# Widths that one transformer layer keeps for each token: both norms and their outputs, q, k, v, the attended values
# and the hidden layer of the MLP with its activation (4 widths each).
KEPT_WIDTHS = 16
# Of a language layer: the same, with half as many keys and values and a gated MLP of three widths.
LANGUAGE_WIDTHS = 19
PICTURE_TOKENS = 64  # of a camera with 256 x 256 px: patches of 16, four merged


@dataclass
class Memory:
    """Bytes of one process. `parts`: name, parameters, of them trained at the end, bytes of weights."""

    parts: list[tuple[str, int, int, int]]
    gradients: int
    moments: int
    copy: int  # of what trains, to which an update returns that was not finite
    activations: int  # estimate
    rollout: int

    @property
    def weights(self) -> int:
        return sum(p[3] for p in self.parts)

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.copy + self.activations + self.rollout

    def lines(self) -> list[str]:
        rows = [f"{'GR00T part':<12} {'parameters':>14} {'trained':>14} {'weights GB':>11}"]
        rows += [f"{n:<12} {count:>14,} {trained:>14,} {size / GB:>11.3f}" for n, count, trained, size in self.parts]
        rows.append(
            f"memory of one process: weights {self.weights / GB:.2f} GB, gradients {self.gradients / GB:.2f}, "
            f"Adam {self.moments / GB:.2f}, copy {self.copy / GB:.2f}, activations (estimate) "
            f"{self.activations / GB:.2f}, rollout {self.rollout / GB:.2f}, together {self.total / GB:.2f} GB"
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
    decision = 4 * (policy.layout.width + policy.critic_dims)
    return Memory(
        [(name, row[0], row[1], row[2]) for name, row in parts.items()], moving, 2 * moving, moving,
        activations(policy, cfg, rows // max(cfg.training.gradient_accumulation_steps, 1)),
        ppo.num_envs * ppo.n_steps * decision,
    )  # fmt: skip


def activations(policy: GR00TActorCritic, cfg: Config, rows: int) -> int:
    """Bytes that the backward of `rows` decisions needs: gradients pass the transformer whatever trains, and all that
    lies between it and a part that trains."""
    g, model = cfg.gr00t, policy.model
    if not g.stages:
        return 0
    cameras, blocks = len(policy.pictures), attentions(model, "dit")
    tokens = cameras * PICTURE_TOKENS + model.prompt.text(max(cameras, 1))  # without a camera it sees a black picture
    chunk = rows * (model.horizon + 1) * blocks * KEPT_WIDTHS * model.state_width
    seen = rows * tokens * (blocks // 2) * 2 * model.state_width  # keys and values of the context
    numbers = chunk + seen
    if "projector" in g.stages:  # every row picks the weights of its robot
        named = [p for n, p in model.named_parameters() if part_of(n) == "projector" and p.dim() == 3]
        numbers += rows * sum(p.numel() // p.shape[0] for p in named)
    context = (rows if policy.pictures else 1) * tokens * model.features  # without pictures all rows share one
    if "vl_head" in g.stages or "backbone" in g.stages:
        numbers += context * KEPT_WIDTHS * attentions(model, "vl_head")
    if "backbone" in g.stages:
        numbers += context * LANGUAGE_WIDTHS * min(g.backbone_layers, len(language_layers(model)))
    return numbers * (4 if g.dtype == "float32" else 2)


def attentions(model: Gr00tModel, part: str) -> int:
    """Layers of a part."""
    names = [n for n, _ in model.named_parameters() if part_of(n) == part]
    return sum(n.endswith(("to_q.weight", "to_q.base_layer.weight")) for n in names)


def planned_robot() -> tuple[gym.spaces.Dict, gym.spaces.Box]:
    """What is planned for: observations of 32 numbers and one camera of 256 x 256 px, 7 actions."""
    numbers, camera = gym.spaces.Box(-1, 1, (32,), np.float32), gym.spaces.Box(0, 255, (3, 256, 256), np.uint8)
    return gym.spaces.Dict({"state": numbers, "camera": camera}), gym.spaces.Box(-1, 1, (7,), np.float32)


def planned(cfg: Config) -> Memory:
    """Of random weights of `gr00t.size` on the meta device, for `planned_robot`."""
    observation, actions = planned_robot()
    with torch.device("meta"):
        model = gr00t_backend.stub(cfg.gr00t.size)
        policy = GR00TActorCritic(model, observation, actions, cfg.gr00t)
    return report(policy, cfg)
