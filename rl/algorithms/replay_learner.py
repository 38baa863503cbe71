"""What learners from replay share, whatever they learn: noise, running statistics, falling learning rates, their state.

Letters: E environments, B batch, A action dims.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from rl.algorithms.guarded_step import Total
from rl.config import OffPolicyConfig
from rl.data.replay import ReplayBatch
from rl.models.features import shift_pictures
from rl.models.running_norm import ObservationNormalizer
from rl.types import TensorTree


class ReplayNetworks(nn.Module):
    """Everything a checkpoint of the policy holds; its forward is the deterministic policy."""

    normalizer: ObservationNormalizer | None

    def normalize(self, observation: TensorTree) -> TensorTree:
        return observation if self.normalizer is None else self.normalizer(observation)


class ReplayLearner:
    """A subclass adds `act`, `update` and `advice`, and counts its `updates`."""

    def __init__(
        self, cfg: OffPolicyConfig, networks: ReplayNetworks, optimizers: Mapping[str, torch.optim.Optimizer],
        lr_final_fraction: float, action_dim: int, device: torch.device, generator: torch.Generator | None,
        autocast: torch.dtype | None, total: Total | None, world_size: int,
    ) -> None:  # fmt: skip
        """optimizers: of one parameter group each, "actor" among them; all learning rates fall linearly to
        `lr_final_fraction` of what they are now.

        generator: of the noise in losses and actions. autocast: dtype of the forward passes, None for float32.
        total: collective sum of a vector over `world_size` ranks.
        """
        self._cfg, self._networks, self.optimizers = cfg, networks, dict(optimizers)
        self.action_dim, self.device, self.generator, self.autocast = action_dim, device, generator, autocast
        self.world_size, self._total = world_size, total if world_size > 1 else None
        self._rates = {name: o.param_groups[0]["lr"] for name, o in optimizers.items()}
        self._lr_final_fraction = lr_final_fraction
        self.updates = 0

    def observe(self, observation: TensorTree, valid: Tensor | None = None) -> None:
        """Takes what the environments showed, (E, ...), into the running statistics, if there are any."""
        if self._networks.normalizer is not None:
            self._networks.normalizer.update(observation, valid)

    def share_statistics(self) -> None:
        """Collective: the running statistics become those of all ranks."""
        if self._networks.normalizer is not None and self._total is not None:
            self._networks.normalizer.share(self._total)

    def set_progress(self, share: float) -> dict[str, float]:
        """Learning rates for the next updates, by the name of their optimizer; `share` of the run that is done."""
        factor = 1 - (1 - self._lr_final_fraction) * min(max(share, 0.0), 1.0)
        rates = {name: rate * factor for name, rate in self._rates.items()}
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name]
        return rates

    def _noise(self, *rows: int) -> Tensor:
        """(*rows, A)"""
        return torch.randn(*rows, self.action_dim, generator=self.generator, device=self.device)

    def _precision(self) -> AbstractContextManager[object]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    @torch.no_grad()
    def _observations(self, batch: ReplayBatch) -> tuple[TensorTree, TensorTree]:
        """Those of a batch before and after its step, as the networks see them; pictures are moved at random."""
        now, after = (
            self._networks.normalize(shift_pictures(x, self._cfg.random_shift, self.generator))
            for x in (batch.observation, batch.next_observation)
        )
        return now, after

    def state_dict(self) -> dict[str, object]:
        """What `networks.state_dict()` lacks to continue exactly."""
        return {"optimizers": {k: o.state_dict() for k, o in self.optimizers.items()}, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for name, saved in cast(dict[str, dict], state["optimizers"]).items():
            self.optimizers[name].load_state_dict(saved)
        self.updates = cast(int, state["updates"])
