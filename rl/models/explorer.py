"""The explorer: the action expert of F1 as a stochastic policy, and a value head, on top of everything frozen.

Its parameters (action expert or its adapter, action projections, value and noise head) act only behind the cached keys
and values of the frozen streams. So a decision is looked at once, when acting; an update runs the action expert alone.
Likelihoods and everything they need are computed in float32, under autocast, too.

Letters: B decisions, N layers, L cached tokens, G key/value heads, D head size, S state dims, F features, Q actions of
a chunk, A padded action dims, K denoise steps, M memory layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f1_vla.acting import look_ahead, plan_suffix, velocity
from f1_vla.batch import F1Batch
from f1_vla.config import FlowKind
from f1_vla.flow import time_embedding
from f1_vla.flow_likelihood import (
    Chain,
    FlowProcess,
    LearnedStd,
    Velocity,
    chain_kl,
    chain_moments,
    draw_noise,
    likelihood_of,
    sample_chain,
    stacked,
)
from f1_vla.policy import F1Policy
from f1_vla.rollout import Sampling
from f1_vla.trainable import part_of
from f1_vla.trunk import KVCache

EXPLORER_PARTS = ("act expert", "action projections")


@dataclass
class Prefix:
    """What the frozen streams make of B decisions."""

    keys: Tensor  # (B, N, L, G, D), in the precision they were computed in
    values: Tensor  # (B, N, L, G, D)
    valid: Tensor  # bool (B, L)
    block: Tensor  # int32 (B, L), equal rows
    state: Tensor  # float32 (B, S), normalised
    features: Tensor  # float32 (B, F): memory states, pooled outputs of the frozen streams, state

    @property
    def cache(self) -> KVCache:
        """As the trunk takes it, in float32."""
        return KVCache(
            self.block[:1], self.valid, list(self.keys.float().unbind(1)), list(self.values.float().unbind(1))
        )

    def rows(self, index: Tensor | slice) -> "Prefix":
        return Prefix(*(getattr(self, f.name)[index] for f in fields(self)))


class ValueHead(nn.Module):
    """Value of a decision from its features, which nothing here trains."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, features_BF: Tensor) -> Tensor:
        """(B,)"""
        return self.layers(self.norm(features_BF))[:, 0]


class NoiseHead(nn.Module):
    """Std of a Flow-Noise step from features and time, between two bounds; their geometric mean at the start."""

    def __init__(self, features: int, hidden: int, action_dim: int, min_std: float, max_std: float) -> None:
        super().__init__()
        self.hidden, self.low, self.high = hidden, math.log(min_std), math.log(max_std)
        self.norm = nn.LayerNorm(features)
        self.encode = nn.Linear(features, hidden)
        self.out = nn.Linear(hidden, action_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features_BF: Tensor, time_B: Tensor) -> Tensor:
        """(B, 1, A)"""
        half = 2 * (self.hidden // 2)
        x = self.encode(self.norm(features_BF))
        x = x + F.pad(time_embedding(time_B, half), (0, self.hidden - half))
        share = self.out(F.silu(x)).sigmoid()
        return (self.low + (self.high - self.low) * share).exp()[:, None]


class Explorer(nn.Module):
    """Everything that trains is reached through `forward`; `look` and `act` are for collecting, without gradients."""

    mask_QA: Tensor
    real_A: Tensor

    def __init__(
        self, policy: F1Policy, process: FlowProcess, action_mask_A: Tensor, chunk: int, execute: int, hidden: int,
        std_range: tuple[float, float],
    ) -> None:  # fmt: skip
        """action_mask_A bool (A,): real dims. chunk: actions drawn at once, of which `execute` are carried out.

        Raises ValueError when a number does not fit the model.
        """
        super().__init__()
        cfg = policy.cfg
        if not 1 <= execute <= chunk <= cfg.chunk_size:
            raise ValueError(
                f"student.chunk_exec_steps is {execute} and {chunk} actions are drawn at once; this model allows "
                f"1 <= student.chunk_exec_steps <= student.flow.chunk_size <= {cfg.chunk_size}"
            )
        self.policy, self.process, self.chunk, self.execute = policy, process, chunk, execute
        self.policy.trunk.act.float()  # likelihoods are float32 on a base of any precision
        features = cfg.memory.memory_hidden * cfg.memory.memory_num_layers + cfg.max_state_dim
        features += cfg.trunk.und.hidden_size + cfg.trunk.gen.hidden_size
        self.value = ValueHead(features, hidden)
        self.noise = None
        if process.kind is FlowKind.noise:
            self.noise = NoiseHead(features, hidden, cfg.max_action_dim, *std_range)
        mask = action_mask_A.expand(chunk, -1) & (torch.arange(chunk) < execute)[:, None]
        self.register_buffer("mask_QA", mask, persistent=False)
        self.register_buffer("real_A", action_mask_A.clone(), persistent=False)
        freeze_all_but_explorer(policy)

    # --- training --------------------------------------------------------------------------------------------------

    def forward(self, prefix: Prefix, chain: Chain) -> dict[str, Tensor]:
        """log_prob, entropy and value of stored decisions, float32 (B,) each; kl, where the chain has a reference."""
        with torch.autocast(prefix.state.device.type, enabled=False):
            moments = chain_moments(self.process, chain, self._velocity(prefix), self._std(prefix))
            log_prob, entropy = likelihood_of(chain, moments, self.mask_QA)
            out = {"log_prob": log_prob, "entropy": entropy, "value": self.value(prefix.features)}
            if chain.reference is not None:
                out["kl"] = chain_kl(moments, chain.reference, self.mask_QA)
            return out

    @torch.no_grad()
    def moments(self, prefix: Prefix, chain: Chain) -> Tensor:
        """Of stored decisions under the present weights, as `Chain.reference` takes them."""
        with torch.autocast(prefix.state.device.type, enabled=False):
            return stacked(chain_moments(self.process, chain, self._velocity(prefix), self._std(prefix)))

    def _velocity(self, prefix: Prefix) -> Velocity:
        plan = plan_suffix(self.policy, prefix, self.chunk)
        cached = _Cached(prefix.cache)
        return lambda x, time: velocity(self.policy, cached, prefix.state, x, time, plan)

    def _std(self, prefix: Prefix) -> LearnedStd | None:
        noise = self.noise
        return None if noise is None else lambda time: noise(prefix.features, time)

    # --- acting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, batch: F1Batch, h: Tensor, num_scales: int | None = None) -> tuple[Prefix, Tensor]:
        """Frozen part of a decision: its prefix, and what the memory will read (B, und + gen width).

        batch: one step of the wrist view; h (M, B, hidden) from before it. Greedy foresight over `num_scales` scales
        (default `world_model.foresight_scales`); a_t is hidden from the world model.
        """
        policy = self.policy
        scales = policy.cfg.world_model.foresight_scales if num_scales is None else num_scales
        seen = look_ahead(policy, batch.hide_current_action(), h, scales, Sampling())
        cache = seen.cache
        state = batch.state[:, 0].float()
        memory = h.permute(1, 0, 2).flatten(1).float()
        prefix = Prefix(
            torch.stack(cache.keys, 1), torch.stack(cache.values, 1), cache.valid,
            cache.block.expand(batch.size, -1), state, torch.cat([memory, seen.memory_features.float(), state], -1),
        )  # fmt: skip
        return prefix, seen.memory_features

    @torch.no_grad()
    def act(self, prefix: Prefix, generators: Sequence[torch.Generator]) -> tuple[Chain, Tensor, Tensor]:
        """Draws one chain a row, row b from generators[b] (CPU): chain, log_prob (B,), value (B,)."""
        drawn = [draw_noise(self.process, 1, self.chunk, len(self.real_A), g) for g in generators]
        noise, steps = (torch.cat(parts).to(prefix.state.device) for parts in zip(*drawn, strict=True))
        with torch.autocast(prefix.state.device.type, enabled=False):
            chain, log_prob = sample_chain(
                self.process, noise, steps, self.mask_QA, self.real_A, self._velocity(prefix), self._std(prefix)
            )
            return chain, log_prob, self.value(prefix.features)

    @torch.no_grad()
    def value_of(self, prefix: Prefix) -> Tensor:
        """(B,)"""
        with torch.autocast(prefix.state.device.type, enabled=False):
            return self.value(prefix.features)


@dataclass
class _Cached:
    """A cache that is made once for all denoise steps."""

    cache: KVCache


def freeze_all_but_explorer(policy: F1Policy) -> None:
    """requires_grad on in the action expert and the action projections only; adapters are added afterwards."""
    for name, p in policy.named_parameters():
        p.requires_grad_(part_of(name) in EXPLORER_PARTS and ".lm_head." not in name)


def explorer_parameters(explorer: Explorer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters of the policy (noise head included) and of the value head."""
    heads = list(explorer.value.parameters())
    own = {id(p) for p in heads}
    return [p for p in explorer.parameters() if p.requires_grad and id(p) not in own], heads
