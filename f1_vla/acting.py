"""What happens when the policy acts: foresight on its own tokens, the action head on top of it, joint training losses.

All of it takes one step (T == 1). Letters: B batch, Q actions of a chunk, A padded action dims, S padded state dims,
M tokens predicted, R scales predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from f1_vla.batch import F1Batch
from f1_vla.flow import action_errors, sample_time
from f1_vla.rollout import Decoding, Foresight, Sampling, roll_out
from f1_vla.trunk import KVCache, mask_on, positions_of
from f1_vla.world_model import StepContext, tail_accuracy, token_nll
from kernels import BlockMask

if TYPE_CHECKING:
    from f1_vla.denoise import Denoiser
    from f1_vla.policy import F1Policy


def look_ahead(
    policy: F1Policy,
    batch: F1Batch,
    h: Tensor,
    num_scales: int,
    sampling: Sampling,
    reserve: Callable[[int, int, torch.device], KVCache] = KVCache.reserve,
) -> Foresight:
    """Prefix call with cache, then the roll-out over `num_scales` scales. One step (T == 1). reserve: makes the empty
    cache of (rows, tokens, device); not asked with gradients."""
    und, und_valid = policy.und_inputs(batch)
    und, und_valid = und[:, 0], und_valid[:, 0]
    h = policy.reset_memory(batch, h, 0)
    raw = policy.condition_inputs(batch)
    look = policy.look(batch, raw)
    aligned = None if look is None else look.predicts(policy.predict_latent(look, h))
    context = StepContext(policy.condition(raw), aligned, policy.tokenizer.quantize.embedding.weight)
    gen = policy.add_memory(policy.gen_prefix(batch, context.condition), h)
    if context.aligned is not None:
        gen = torch.cat([gen[:, :-1], gen[:, -1:] + context.aligned.features[:, :1]], 1)
    gen_valid = torch.ones(gen.shape[:2], dtype=torch.bool, device=gen.device)
    valid = torch.cat([und_valid, gen_valid], 1)
    sizes = policy.world_model.scale_sizes
    room = valid.shape[1] + sum(sizes[1:num_scales]) + 1 + policy.cfg.chunk_size
    out, cache = policy.trunk(
        {"und": und, "gen": gen},
        positions_of(valid),
        policy.blocks(und.shape[1], 1),
        valid,
        cache=None if torch.is_grad_enabled() else reserve(batch.size, room, policy.device),
        keep_cache=True,
    )
    assert cache is not None
    features = policy.pool(out["und"], und_valid, out["gen"])
    return roll_out(
        policy.trunk,
        policy.world_model,
        policy.tokenizer,
        cache,
        out["gen"][:, -1:],
        context,
        num_scales,
        sampling,
        features,
    )


def scales_of(policy: F1Policy, asked: int | None, default: int) -> int:
    """Scales to roll out. ValueError when the model has no such number."""
    found, most = default if asked is None else asked, len(policy.cfg.tokenizer.scales)
    if not 1 <= found <= most:
        raise ValueError(f"num_scales is {found}; this model has 1 to {most}")
    return found


class HasCache(Protocol):
    """What an action suffix runs on: a `Foresight`, or a stored prefix."""

    @property
    def cache(self) -> KVCache: ...


@dataclass(frozen=True)
class SuffixPlan:
    """What every action suffix on top of one foresight shares: positions, blocks and mask, made once."""

    positions: Tensor  # (B, 1 + Q)
    block: Tensor  # int32 (1, 1 + Q)
    valid: Tensor  # bool (B, 1 + Q)
    mask: BlockMask


def plan_suffix(policy: F1Policy, foresight: HasCache, num_actions: int) -> SuffixPlan:
    """The state is a block of its own, the actions are one that sees it; both see everything cached."""
    cache, n = foresight.cache, num_actions + 1
    device = cache.valid.device
    block = torch.full((1, n), len(policy.cfg.tokenizer.scales) + 2, dtype=torch.int32, device=device)
    block[:, 0] -= 1
    valid = torch.ones(cache.valid.shape[0], n, dtype=torch.bool, device=device)
    positions = cache.valid.sum(1, keepdim=True) + torch.arange(n, device=device)
    return SuffixPlan(positions, block, valid, mask_on(cache, block, valid))


def velocity(
    policy: F1Policy,
    foresight: HasCache,
    state_BS: Tensor,
    x_BQA: Tensor,
    time_B: Tensor,
    plan: SuffixPlan | None = None,
) -> Tensor:
    """Velocity (B, Q, A) of the action head on top of the cached und and gen tokens. plan: of an earlier call."""
    p = plan_suffix(policy, foresight, x_BQA.shape[1]) if plan is None else plan
    suffix = policy.flow.embed(state_BS, x_BQA, time_B)
    out, _ = policy.trunk({"act": suffix}, p.positions, p.block, p.valid, cache=foresight.cache, mask=p.mask)
    return policy.flow.velocity(out["act"])


class Denoised(NamedTuple):
    """What the Euler loop passed through, N steps."""

    chain: Tensor  # (N + 1, B, Q, A) from noise to actions
    velocities: Tensor  # (N, B, Q, A)
    times: Tensor  # (N,)


def euler(step: Callable[[Tensor, Tensor], Tensor], noise_BQA: Tensor, steps: int) -> Denoised:
    """From t = 1 to 0 in equal steps; `step` gives the velocity at (x (B, Q, A), t (B,))."""
    x, device = noise_BQA, noise_BQA.device
    dt, t = torch.full((), -1.0 / steps, device=device), torch.ones((), device=device)
    chain, velocities, times = [x], [], []
    for _ in range(steps):
        v = step(x, t.expand(len(x)))
        times.append(t)
        x, t = x + dt * v, t + dt  # accumulated in float32, as released
        chain.append(x)
        velocities.append(v)
    return Denoised(torch.stack(chain), torch.stack(velocities), torch.stack(times))


def joint_losses(
    policy: F1Policy,
    batch: F1Batch,
    h: Tensor,
    sampling: Sampling | None = None,
    noise: Tensor | None = None,
    time: Tensor | None = None,
    world_model_loss_ratio: float = 0.1,
) -> dict[str, Any]:
    """The published joint training step: the world model feeds on its own tokens, the action loss reaches every stream.

    loss = action_loss + ratio * wm_loss; both are plain means (padding of actions stays in the denominator). a_t is
    hidden from the world model, or the action head could read its label there.
    """
    batch = batch.hide_current_action()
    R = policy.cfg.world_model.num_resolutions
    action = batch.require("action_chunk", "mode 'joint'")
    foresight = look_ahead(policy, batch, h, R, sampling or Sampling(Decoding.sample))
    targets = batch.require("target_ids", "mode 'joint'")[:, 0, : foresight.logits.shape[1]]
    nll = token_nll(foresight.logits, targets)
    noise = torch.randn_like(action) if noise is None else noise
    time = sample_time(batch.size, policy.device) if time is None else time
    t = time[:, None, None]
    x_t, u_t = t * noise + (1 - t) * action, noise - action
    v = velocity(policy, foresight, batch.state[:, 0], x_t, time)
    errors = action_errors(v, u_t, batch.action_is_pad)
    wm_loss, action_loss = nll.mean(), errors.mean()
    correct = foresight.logits.detach().argmax(-1) == targets
    h = policy.write_memory(policy.reset_memory(batch, h, 0), foresight.memory_features, batch.actions[:, 0, -1], batch)
    return {
        "loss": action_loss + world_model_loss_ratio * wm_loss,
        "wm_loss": wm_loss,
        "action_loss": action_loss,
        "action_losses": errors,
        "velocity": v,
        "x_t": x_t,
        "u_t": u_t,
        "acc_mean": correct.float().mean(),
        "acc_tail": tail_accuracy(correct, R),
        "foresight": foresight,
        "memory_state": h,
    }


def sample_actions(
    policy: F1Policy,
    batch: F1Batch,
    h: Tensor,
    sampling: Sampling | None = None,
    noise: Tensor | None = None,
    num_steps: int | None = None,
    num_scales: int | None = None,
    denoiser: Denoiser | None = None,
) -> dict[str, Any]:
    """Euler steps from t = 1 to 0; a_t is hidden from the world model, whatever the batch says.

    actions (B, Q, A), chain (steps + 1, B, Q, A) from noise to actions, velocities (steps, B, Q, A), times (steps,).
    denoiser: runs the loop another way than step by step; the result is the same.
    """
    batch = batch.hide_current_action()
    num_scales = scales_of(policy, num_scales, policy.cfg.world_model.foresight_scales)
    steps = policy.cfg.num_denoise_steps if num_steps is None else num_steps
    shape = (batch.size, policy.cfg.chunk_size, policy.cfg.max_action_dim)
    if steps < 1:
        raise ValueError(f"num_steps is {steps}; the Euler loop takes at least 1 step")
    if noise is not None and tuple(noise.shape) != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}, this batch and model take {shape}")
    x, state = torch.randn(shape, device=policy.device) if noise is None else noise, batch.state[:, 0]
    if denoiser is None:
        foresight = look_ahead(policy, batch, h, num_scales, sampling or Sampling())
        plan = plan_suffix(policy, foresight, x.shape[1])
        found = euler(lambda x, t: velocity(policy, foresight, state, x, t, plan), x, steps)
    else:
        foresight = look_ahead(policy, batch, h, num_scales, sampling or Sampling(), denoiser.reserve)
        found = denoiser(foresight, x, state, steps)
    return {
        "actions": found.chain[-1],
        **found._asdict(),
        "foresight": foresight,
        "memory_features": foresight.memory_features,
        "memory_state": policy.reset_memory(batch, h, 0),
    }


def predict_images(
    policy: F1Policy, batch: F1Batch, h: Tensor, sampling: Sampling | None = None, num_scales: int | None = None
) -> dict[str, Any]:
    """Rolls out the next frame and decodes it: images (B, 3, S, S) in [-1, 1]."""
    num_scales = scales_of(policy, num_scales, len(policy.cfg.tokenizer.scales))
    foresight = look_ahead(policy, batch, h, num_scales, sampling or Sampling())
    with torch.no_grad(), torch.autocast(policy.device.type, enabled=False):
        images = policy.tokenizer.decode(foresight.fhat)
    h = policy.write_memory(policy.reset_memory(batch, h, 0), foresight.memory_features, batch.actions[:, 0, -1], batch)
    return {
        "images": images,
        "ids": foresight.ids,
        "logits": foresight.logits,
        "fhat": foresight.fhat,
        "predicted_latent": foresight.predicted_latent,
        "memory_state": h,
    }
