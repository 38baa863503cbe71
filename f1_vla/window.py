"""Teacher-forced world model over a window of steps, with the memory carried through (truncated BPTT).

Letters: B batch, T steps, L tokens of a frame, M output slots in use (tokens of the first R scales), C latent channels,
P latent side, V codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from f1_vla.batch import F1Batch
from f1_vla.ensemble import token_entropy
from f1_vla.trunk import mask_on, positions_of
from f1_vla.world_model import StepContext, fused_nll, token_nll, use_fused
from kernels import BlockMask

if TYPE_CHECKING:
    from f1_vla.policy import F1Policy


def teacher_forced_window(
    policy: F1Policy,
    batch: F1Batch,
    h: Tensor,
    memory_backprop: bool = True,
    return_logits: bool = False,
    latent_batch: tuple[F1Batch, Tensor] | None = None,
    uncertainty: bool = False,
) -> dict[str, Any]:
    """One loop over T steps. Returns, beside loss and memory_state:

    nll float32 (B, T, M) and correct bool (B, T, M), detached; valid (B, T); logits (B, T, M, V) on request;
    metrics, detached: loss, accuracy, memory_norm, memory_gate (0-dim), loss_per_scale and accuracy_per_scale (R,).
    memory_states float32 (B, T, num_layers, hidden), detached: the state each step read.
    With a latent head: latent_loss (not part of loss; covers latent_batch, single steps with memory states, too) and
    predicted_latent (B, T, C, P, P), detached.
    With ensemble heads and batch.bootstrap: ensemble_loss (not part of loss, no gradient to anything but the heads).
    With uncertainty: entropy of the world model's own prediction and, with ensemble heads, disagreement, both
    (B, T, M) in nats, detached.
    """
    B, T, wm = batch.size, batch.steps, policy.world_model
    L, M = wm.num_tokens, sum(wm.scale_sizes[: policy.cfg.world_model.num_resolutions])
    targets = batch.require("target_ids", "the teacher-forced world model")
    und, und_valid = policy.und_inputs(batch)
    raw = policy.condition_inputs(batch)
    condition = policy.condition(raw)
    look = policy.look(batch, raw)
    prefix = policy.gen_prefix(batch, condition)
    target_var = policy.var_inputs(targets).flatten(0, 1)[:, : M - 1]
    forced = wm.embed_slots(wm.corrupt(target_var), 1, condition)
    gen = torch.cat([prefix, forced.to(prefix.dtype)], 1)
    if look is not None:
        gen = torch.cat([gen[:, : L - 1], gen[:, L - 1 :] + look.features_NLD[:, :M]], 1)
    gen = gen.unflatten(0, (B, T))
    block = policy.blocks(und.shape[2], M)
    gen_valid = torch.ones(B, gen.shape[2], dtype=torch.bool, device=gen.device)
    hidden, states = [], []
    for t, (positions, valid, mask) in enumerate(_step_masks(block, und_valid, gen_valid)):
        h = policy.reset_memory(batch, h, t)
        h = h if memory_backprop else h.detach()
        states.append(h)
        x = policy.add_memory(gen[:, t], h)
        out, _ = policy.trunk({"und": und[:, t], "gen": x}, positions, block, valid, mask=mask)
        hidden.append(out["gen"][:, L - 1 :])
        features = policy.pool(out["und"], und_valid[:, t], out["gen"][:, :L])
        h = policy.write_memory(h, features, batch.actions[:, t, -1], batch, t)
    context = StepContext(condition, codebook=policy.tokenizer.quantize.embedding.weight)
    read = torch.stack(states, 2)  # (num_layers, B, T, hidden)
    if look is not None:
        context.aligned = look.predicts(policy.predict_latent(look, read.flatten(1, 2)))
    outputs, wanted = torch.stack(hidden, 1).flatten(0, 1), targets[..., :M]
    logits = None
    if return_logits or uncertainty or not use_fused(policy.cfg.world_model):
        logits = wm.head(outputs, target_var, 0, context)
        nll = token_nll(logits, wanted.flatten(0, 1))
        correct = logits.detach().argmax(-1) == wanted.flatten(0, 1)
    else:
        nll, correct = fused_nll(wm, outputs, wanted.flatten(0, 1))
    result = _window_result(policy, batch, nll.view(B, T, M), correct.view(B, T, M), h)
    if return_logits:
        assert logits is not None
        result["logits"] = logits.unflatten(0, (B, T))
    if wm.ensemble is not None and batch.bootstrap is not None:
        result["ensemble_loss"] = _ensemble_loss(policy, outputs, logits, wanted, result["valid"], batch.bootstrap)
    if uncertainty:
        assert logits is not None
        result["entropy"] = token_entropy(logits.detach().softmax(-1)).unflatten(0, (B, T))
        if wm.ensemble is not None:
            result["disagreement"] = wm.ensemble.disagreement(outputs, logits).unflatten(0, (B, T))
    result["memory_states"] = read.detach().permute(1, 2, 0, 3)
    if context.aligned is not None:
        predicted = context.aligned.latent.unflatten(0, (B, T))
        result["latent_loss"] = _latent_loss(policy, batch, predicted, result["valid"])
        result["predicted_latent"] = predicted.detach()
        if latent_batch is not None:
            result["latent_loss"] = 0.5 * (result["latent_loss"] + _single_step_latent_loss(policy, *latent_batch))
    return result


def _step_masks(block: Tensor, und_valid: Tensor, gen_valid: Tensor) -> list[tuple[Tensor, Tensor, BlockMask]]:
    """(positions, valid, mask) of every step of a window; one object for all steps when they see the same tokens, as
    nearly always: what attention derives from a mask costs a wait for the device.

    block int32 (1, L), und_valid bool (B, T, Su), gen_valid bool (B, L - Su).
    """
    T = und_valid.shape[1]
    same = T > 1 and bool((und_valid == und_valid[:, :1]).all())
    found = []
    for t in range(1 if same else T):
        valid = torch.cat([und_valid[:, t], gen_valid], 1)
        found.append((positions_of(valid), valid, mask_on(None, block, valid)))
    return found * T if same else found


def memory_window(policy: F1Policy, batch: F1Batch, h: Tensor) -> dict[str, Any]:
    """Carries the memory over T steps without predicting anything (burn-in): memory_state, and memory_states (B, T,
    num_layers, hidden), detached, the state each step read."""
    und, und_valid = policy.und_inputs(batch)
    raw = policy.condition_inputs(batch)
    prefix = policy.gen_prefix(batch, policy.condition(raw))
    look = policy.look(batch, raw)
    if look is not None:
        prefix = torch.cat([prefix[:, :-1], prefix[:, -1:] + look.features_NLD[:, :1]], 1)
    prefix = prefix.unflatten(0, (batch.size, batch.steps))
    block = policy.blocks(und.shape[2], 1)
    seen_gen = torch.ones(batch.size, prefix.shape[2], dtype=torch.bool, device=prefix.device)
    states = []
    for t, (positions, valid, mask) in enumerate(_step_masks(block, und_valid, seen_gen)):
        h = policy.reset_memory(batch, h, t)
        states.append(h.detach())
        x = policy.add_memory(prefix[:, t], h)
        out, _ = policy.trunk({"und": und[:, t], "gen": x}, positions, block, valid, mask=mask)
        h = policy.write_memory(
            h, policy.pool(out["und"], und_valid[:, t], out["gen"]), batch.actions[:, t, -1], batch, t
        )
    return {"memory_state": h, "memory_states": torch.stack(states, 2).permute(1, 2, 0, 3)}


def _ensemble_loss(
    policy: F1Policy, outputs: Tensor, logits: Tensor | None, targets: Tensor, valid: Tensor, bootstrap: Tensor
) -> Tensor:
    """Loss of the ensemble heads. outputs (B*T, M, d), logits (B*T, M, V) or None (no latent head then), targets
    (B, T, M), valid (B, T), bootstrap (B, K)."""
    wm, (B, T, _) = policy.world_model, targets.shape
    assert wm.ensemble is not None
    # Neighbouring steps are nearly the same sample: first and last of a window do, at a fraction of the cost.
    ends = [0] if T == 1 else [0, T - 1]
    weight = (valid[:, ends, None] & bootstrap[:, None]).flatten(0, 1)
    x, target = outputs.unflatten(0, (B, T))[:, ends].flatten(0, 1), targets[:, ends].flatten(0, 1)
    if logits is None:
        with torch.no_grad():
            base = wm.head(x, x[:0], 0, StepContext())
    else:
        base = logits.unflatten(0, (B, T))[:, ends].flatten(0, 1)
    return wm.ensemble.loss(x, base, target, weight)


def _single_step_latent_loss(policy: F1Policy, batch: F1Batch, states: Tensor) -> Tensor:
    """Latent loss alone on single steps (T == 1), which skip the transformer and so cost little."""
    look = policy.look(batch, policy.condition_inputs(batch))
    assert look is not None
    predicted = policy.predict_latent(look, states).unsqueeze(1)
    valid = torch.ones(batch.size, 1, dtype=torch.bool, device=predicted.device)
    return _latent_loss(policy, batch, predicted, valid if batch.valid is None else batch.valid)


def _latent_loss(policy: F1Policy, batch: F1Batch, predicted: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error of the predicted latent over valid steps, float32, in units of the latents' spread."""
    head = policy.world_model.latent_head
    assert head is not None
    label = batch.target_latents
    if label is None:
        targets = batch.require("target_ids", "the latent loss")
        with torch.no_grad(), torch.autocast(policy.device.type, enabled=False):
            label = policy.tokenizer.ids_to_fhat(targets.flatten(0, 1)).unflatten(0, targets.shape[:2])
    errors = head.in_units(predicted.float() - label.float()).square().mean((-3, -2, -1))
    return (errors * valid).sum() / valid.sum().clamp(min=1)


def _window_result(policy: F1Policy, batch: F1Batch, nll: Tensor, correct: Tensor, h: Tensor) -> dict[str, Any]:
    """nll float32 and correct bool, both (B, T, M)."""
    B, T, _ = nll.shape
    valid = torch.ones(B, T, dtype=torch.bool, device=nll.device) if batch.valid is None else batch.valid
    weight = valid.to(nll.dtype) / valid.sum().clamp(min=1)
    loss = (nll.mean(-1) * weight).sum()
    # The last state feeds no loss of this window; naming it keeps one set of parameters with gradients for every T.
    loss = loss + 0.0 * h.sum()
    sizes = policy.world_model.scale_sizes[: policy.cfg.world_model.num_resolutions]
    metrics = {
        "loss": loss.detach(),
        "accuracy": (correct.float().mean(-1) * weight).sum(),
        "loss_per_scale": torch.stack([(x.mean(-1) * weight).sum() for x in nll.detach().split(sizes, -1)]),
        "accuracy_per_scale": torch.stack([(x.float().mean(-1) * weight).sum() for x in correct.split(sizes, -1)]),
        "memory_norm": h.detach().norm(dim=-1).mean(),
        "memory_gate": _gate_size(policy),
    }
    result: dict[str, Any] = {"loss": loss, "memory_state": h, "nll": nll.detach(), "correct": correct, "valid": valid}
    result["metrics"] = metrics
    return result


def _gate_size(policy: F1Policy) -> Tensor:
    """Mean absolute effect of a unit state: |gate| times the mean |weight| of the read projection."""
    if policy.memory is None:
        return torch.zeros((), device=policy.device)
    return policy.memory.memory_gate.detach().abs() * policy.memory.out_proj.weight.detach().abs().mean()
