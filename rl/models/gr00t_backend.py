"""One interface over the versions of GR00T: what a policy needs of the model, whatever its release.

Convention of f1_vla.flow_likelihood: x_t = t * noise + (1 - t) * action, v = noise - action, t from 1 to 0. GR00T
counts the other way round, tau = 1 - t, and predicts action - noise; `velocity` translates.

Letters: B batch, L tokens, F features of the backbone, Q actions of a chunk, A action slots, S state slots, W width of
the diffusion transformer.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rl.models.gr00t_prompt import RANDOM, Prompt, qwen
from rl.models.gr00t_stub import SIZES, StubModel

# Names of parameters -> part of the model; the first match counts.
PARTS = (
    ("backbone.", "backbone"),
    ("action_head.vlln", "vl_head"),
    ("action_head.vl_self_attention", "vl_head"),
    ("action_head.model.", "dit"),
    ("action_head.", "projector"),
)


@dataclass
class Context:
    """What the model makes of the cameras and the instruction."""

    tokens: Tensor  # (B, L, F)
    valid: Tensor  # bool (B, L)
    pictured: Tensor  # bool (B, L), tokens of pictures

    def expand(self, batch: int) -> "Context":
        """One row for all of `batch`."""
        return Context(*(t.expand(batch, *t.shape[1:]) for t in (self.tokens, self.valid, self.pictured)))

    def pooled(self) -> Tensor:
        """(B, F) float32 mean of the valid tokens: half precision neither counts to 601 nor holds such a sum."""
        weight = self.valid[..., None].float()
        return (self.tokens.float() * weight).sum(1) / weight.sum(1).clamp_min(1)


class Gr00tModel(nn.Module):
    """N1.7, and the stub: `model` has `backbone` and `action_head` as LeRobot's GR00TN17."""

    version = "n1.7"
    model: Any  # a module of a library without types

    def __init__(self, model: nn.Module, prompt: Prompt = RANDOM, image_token: int | None = None) -> None:
        """`image_token`: default the backbone's own."""
        super().__init__()
        self.model = model
        head: Any = model.action_head
        self.action_slots = int(head.action_encoder.W1.W.shape[1])
        self.state_slots = int(head.state_encoder.layer1.W.shape[1])
        self.embodiments = int(head.state_encoder.layer1.W.shape[0])
        self.state_width = int(head.state_encoder.layer2.W.shape[2])
        self.features = int(head.vlln.weight.shape[0])
        self.horizon, self.buckets = self._sizes()
        assert self.horizon > 0 and self.buckets > 0
        self.prompt = prompt
        self.image_token = int(self.model.backbone.image_token if image_token is None else image_token)

    def _sizes(self) -> tuple[int, int]:
        """Actions of a chunk, and in how many steps the model tells time."""
        config: Any = getattr(self.model, "config", getattr(self.model, "sizes", None))
        horizon = getattr(config, "action_horizon", getattr(config, "horizon", 0))
        return int(horizon), int(getattr(config, "num_timestep_buckets", getattr(config, "buckets", 0)))

    @property
    def head(self) -> Any:
        return self.model.action_head

    def encode(self, pictures: list[Tensor], device: torch.device) -> Context:
        """Backbone on pictures (B, 3, H, W) uint8, one entry a camera, of any sizes; without any, one row of a black
        picture."""
        pictures = pictures or [torch.zeros(1, 3, 32, 32, dtype=torch.uint8, device=device)]
        batch = len(pictures[0])
        values, grids, counts = [], [], []
        for picture in pictures:
            patches, grid = patchify(picture)
            values.append(patches)
            grids.append(grid)
            counts.append(patches.shape[1] // 4)
        ids = self.prompt.ids(counts, self.image_token, device).repeat(batch, 1)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.cat(values, 1).flatten(0, 1),
            "image_grid_thw": torch.tensor(grids * batch, device=device),
        }
        out = self.model.backbone(inputs)
        return Context(out["backbone_features"], out["backbone_attention_mask"], out["image_mask"])

    def refine(self, context: Context) -> Context:
        """The layers of the action head over the backbone's features."""
        return replace(context, tokens=self.head.vl_self_attention(self.head.vlln(context.tokens)))

    def embed_state(self, state_BS: Tensor, embodiment_B: Tensor) -> Tensor:
        """(B, 1, W)."""
        return self.head.state_encoder(state_BS[:, None], embodiment_B)

    def velocity(
        self, context: Context, state_B1W: Tensor, x_BQA: Tensor, time_B: Tensor, embodiment_B: Tensor
    ) -> Tensor:
        """v (B, Q, A) at t = time_B; `context` is refined."""
        step = self._step(time_B)
        x = self._chunk(x_BQA, step, embodiment_B)
        out = self.head.model(
            hidden_states=torch.cat([state_B1W, x], 1), encoder_hidden_states=context.tokens, timestep=step,
            image_mask=context.pictured, backbone_attention_mask=context.valid,
        )  # fmt: skip
        return -self.head.action_decoder(out, embodiment_B)[:, -x_BQA.shape[1] :].float()

    def _step(self, time_B: Tensor) -> Tensor:
        """tau = 1 - t in the model's buckets; the small number keeps k / K from falling below itself."""
        return ((1 - time_B) * self.buckets + 1e-3).long()

    def _chunk(self, x_BQA: Tensor, step_B: Tensor, embodiment_B: Tensor) -> Tensor:
        x = self.head.action_encoder(x_BQA, step_B, embodiment_B)
        return x + self.head.position_embedding.weight[: x.shape[1]]


def patchify(picture: Tensor, patch: int = 16) -> tuple[Tensor, list[int]]:
    """Pictures (B, 3, H, W) uint8 as Qwen3-VL takes them: (B, patches, 3 * 2 * patch^2) in [-1, 1], and their grid.

    Sides become the next multiples of 2 * patch. The frame is doubled in time; four patches that are merged later lie
    next to each other.
    """
    B, C, H, W = picture.shape
    cell = 2 * patch
    height, width = (max(cell, round(n / cell) * cell) for n in (H, W))
    x = picture.float()
    if (height, width) != (H, W):
        x = nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True)
    x = (x / 127.5 - 1)[:, None].expand(-1, 2, -1, -1, -1)  # time
    x = x.reshape(B, 2, C, height // cell, 2, patch, width // cell, 2, patch)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return x.reshape(B, -1, C * 2 * patch * patch), [1, height // patch, width // patch]


def part_of(name: str) -> str:
    """Part of the model a parameter belongs to; `name` as in `Gr00tModel.named_parameters`."""
    name = name.removeprefix("model.")
    return next(part for start, part in PARTS if name.startswith(start))


def remove_dropout(module: nn.Module) -> int:
    """Replaces every dropout layer by nothing: a likelihood is of the policy that acted. Returns how many."""
    count = 0
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, nn.Identity())
                count += 1
    return count


def stub(size: str) -> Gr00tModel:
    """Random weights; `size` a key of SIZES."""
    return Gr00tModel(StubModel(SIZES[size]), qwen() if size == "n1.7" else RANDOM)
