"""What a forward pass reads. Frozen computations (tokenizer, vision tower) are done once per frame; features enter.

Letters: B batch, T steps of a window (1 for a single step), N cameras, P patches, Dv width of the vision tower,
O history length (n_obs_img_steps), K ensemble members, L tokens of a frame, C latent channels, p latent side,
A padded action dims, S padded state dims, Lt text tokens, Q actions of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from f1_vla.config import F1Config


@dataclass
class FrameFeatures:
    """Frozen computations of M frames; see `F1Policy.encode_frames`."""

    ids: Tensor  # int64 (M, L) tokens of the world-model picture
    latents: Tensor  # float32 (M, C, p, p) continuous encoder output of the same picture
    vision: Tensor | None = None  # float32 (M, N, P, Dv) tower outputs before the projector


@dataclass
class F1Batch:
    """One window of T steps. Step t sees frames up to t and predicts frame t+1.

    history slot i holds the frame seen before actions[..., i, :] was executed; the last slot is time t itself.
    """

    lang_tokens: Tensor  # int64 (B, Lt)
    lang_masks: Tensor  # bool (B, Lt)
    camera_mask: Tensor  # bool (B, T, N): False hides that camera's tokens
    history_ids: Tensor  # int64 (B, T, O, L)
    history_mask: Tensor  # bool (B, T, O): False where the slot repeats the first frame of an episode
    actions: Tensor  # float (B, T, O, A), normalised, as executed; the last slot is a_t
    action_known: Tensor  # bool (B, T, O): False hides the action from the world model (not from the memory)
    state: Tensor  # float (B, T, S), normalised
    vision: Tensor | None = None  # float (B, T, N, P, Dv): tower outputs; else `images`
    images: Tensor | None = None  # float (B, T, N, 3, h, w) in [0, 1], when the tower is trained
    history_latents: Tensor | None = None  # float (B, T, O, C, p, p), read by the latent head only
    target_ids: Tensor | None = None  # int64 (B, T, L) tokens of frame t+1
    target_latents: Tensor | None = (
        None  # float (B, T, C, p, p) label of the latent head; None: rebuilt from target_ids
    )
    reset: Tensor | None = None  # bool (B, T): zero the memory before this step
    valid: Tensor | None = None  # bool (B, T): steps that enter the loss
    bootstrap: Tensor | None = None  # bool (B, K): ensemble members that train on this row; None: none does
    action_chunk: Tensor | None = None  # float (B, Q, A): label of the action head (single steps only)
    action_is_pad: Tensor | None = None  # bool (B, Q)

    @property
    def size(self) -> int:
        """B"""
        return self.state.shape[0]

    @property
    def steps(self) -> int:
        """T"""
        return self.state.shape[1]

    def check(self, cfg: F1Config) -> None:
        """ValueError naming the field whose sizes are not the model's. Values are not looked at."""
        O, L = cfg.n_obs_img_steps, cfg.tokenizer.num_tokens  # noqa: E741
        wanted = {"state": (cfg.max_state_dim,), "actions": (O, cfg.max_action_dim), "history_ids": (O, L)}
        for name, sizes in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found[-len(sizes) :] != sizes:
                last = ", ".join(map(str, sizes))
                raise ValueError(f"F1Batch.{name} is {found}, this model takes (..., {last}); pad with zeros or cut")
        words, most = self.lang_tokens.shape[-1], cfg.tokenizer_max_length
        if words > most:
            raise ValueError(
                f"F1Batch.lang_tokens has {words} tokens, tokenizer_max_length is {most}; shorten the instruction or "
                f"set arch.tokenizer_max_length={words}"
            )
        if self.lang_masks.shape != self.lang_tokens.shape:
            found, given = tuple(self.lang_masks.shape), tuple(self.lang_tokens.shape)
            raise ValueError(f"F1Batch.lang_masks is {found}, lang_tokens is {given}; they must agree")

    def _map(self, f: Callable[[str, Tensor], Tensor]) -> "F1Batch":
        changed = {x.name: f(x.name, v) for x in fields(self) if (v := getattr(self, x.name)) is not None}
        return replace(self, **changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "F1Batch":
        return self._map(lambda _, v: v.to(device, non_blocking=non_blocking))

    def rows(self, index: Tensor | slice) -> "F1Batch":
        """Selects batch rows."""
        return self._map(lambda _, v: v[index])

    def window(self, start: int, stop: int) -> "F1Batch":
        """Selects the steps [start, stop)."""
        timeless = {"lang_tokens", "lang_masks", "bootstrap", "action_chunk", "action_is_pad"}
        return self._map(lambda name, v: v if name in timeless else v[:, start:stop])

    def hide_current_action(self) -> "F1Batch":
        """The same batch with a_t unknown to the world model: what acting looks like."""
        known = self.action_known.clone()
        known[..., -1] = False
        return replace(self, action_known=known)

    def require(self, name: str, call: str) -> Tensor:
        """The optional field `name`; ValueError naming the call when it is missing."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"F1Batch.{name} is None, but {call} needs it")
        return value
