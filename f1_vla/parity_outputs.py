"""Every quantity that a parity fixture may hold, computed by this model under the fixture's names (see f1_vla.parity).

Letters: B batch, T frames of a history (observed and the one to predict), N cameras, L tokens of a frame, C latent
channels, P latent side.
"""

import inspect
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from f1_vla import weights
from f1_vla.batch import F1Batch
from f1_vla.config import TokenizerConfig
from f1_vla.flow import time_embedding
from f1_vla.policy import F1Policy
from f1_vla.rollout import Sampling
from f1_vla.tokenizer import MultiScaleQuantizer
from f1_vla.trunk import Trunk
from f1_vla.vision import resize_with_pad
from f1_vla.world_model import tail_accuracy, token_nll
from kernels import BlockMask

Outputs = dict[str, Tensor]
LOSSES = ("wm_loss", "acc_mean", "acc_tail", "action_loss", "loss")
WORLD_MODEL_LOSS_RATIO = 0.1  # used by the recording
MAX_CAMERAS = 3


@dataclass(frozen=True)
class Sizes:
    num_observed: int  # frames of `in.history` before the target
    forced_resolutions: int  # scales of the teacher-forced run, which the public code can do with all of them only


@dataclass
class TrunkCall:
    """One call of the trunk as it was seen from outside."""

    inputs: dict[str, Tensor]
    positions: Tensor
    visible: Tensor  # bool (B, Lq, Lk)
    outputs: dict[str, Tensor]


@contextmanager
def recorded_calls(trunk: Trunk) -> Iterator[list[TrunkCall]]:
    """Records every call of the trunk inside the block."""
    calls: list[TrunkCall] = []
    signature = inspect.signature(trunk.forward)

    def before(_: Any, args: Any, kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        block, valid, cache = given["block"], given["valid_BL"], given.get("cache")
        k_block = block if cache is None else torch.cat([cache.block, block], 1)
        k_valid = valid if cache is None else torch.cat([cache.valid, valid], 1)
        visible = BlockMask(block, k_block, valid, k_valid).visible()
        calls.append(TrunkCall(dict(given["streams"]), given["positions_BL"], visible, {}))

    def after(_: Any, __: Any, out: Any) -> None:
        calls[-1].outputs = out[0]

    hooks = [trunk.register_forward_pre_hook(before, with_kwargs=True), trunk.register_forward_hook(after)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def compute_outputs(
    policy: F1Policy, spec: dict[str, Any], data: Outputs, sizes: Sizes, gradients: bool = True
) -> Outputs:
    """Everything the fixture's inputs determine. data: tensors of the fixture, of which only inputs are read."""
    out: Outputs = {}
    data = {n: t.to(policy.device) for n, t in data.items()}
    batch = fixture_batch(policy, data, sizes)
    with torch.no_grad():
        out |= tokenizer_outputs(policy, data, sizes)
        out |= input_outputs(policy, data, batch)
    out |= teacher_forced_outputs(policy, spec, data, batch, sizes, gradients)
    out |= joint_outputs(policy, spec, data, batch, gradients)
    with torch.no_grad():
        out |= sample_outputs(policy, data, batch)
        out |= auxiliary_outputs(policy, spec, data)
    return out


# --- inputs -----------------------------------------------------------------------------------------------------------


def cameras_of(policy: F1Policy, data: Outputs) -> list[int]:
    """Numbers of the cameras in the sequence: those given, but for one whose prepared pixels sum to exactly zero."""
    given = [i for i in range(MAX_CAMERAS) if f"in.image{i}" in data]
    return [i for i in given if policy.vision.prepare(data[f"in.image{i}"]).sum() != 0]


def fixture_batch(policy: F1Policy, data: Outputs, sizes: Sizes) -> F1Batch:
    """The inputs as one step. The action and state conditioning reads something, too, and must have no effect."""
    cfg, B = policy.cfg, data["in.state"].shape[0]
    side, O = cfg.vision.image_size, cfg.n_obs_img_steps  # noqa: E741
    cameras = cameras_of(policy, data)
    images = [resize_with_pad(data[f"in.image{i}"], side, side) for i in cameras]
    everywhere = torch.ones(B, dtype=torch.bool, device=policy.device)
    masks = [data.get(f"in.image{i}_mask", everywhere) for i in cameras]
    with torch.no_grad():
        frames = data["in.history"].float()
        latents = policy.tokenizer.encode_latent(frames.flatten(0, 1))
        ids = torch.cat(policy.tokenizer.quantize.quantize(latents)[0], 1).unflatten(0, frames.shape[:2])
        latents = latents.unflatten(0, frames.shape[:2])
    return F1Batch(
        lang_tokens=data["in.lang_tokens"],
        lang_masks=data["in.lang_masks"],
        camera_mask=torch.stack(masks, 1)[:, None],
        history_ids=ids[:, None, :O],
        history_mask=torch.ones(B, 1, O, dtype=torch.bool, device=policy.device),
        actions=torch.ones(B, 1, O, cfg.max_action_dim, device=policy.device),
        action_known=torch.ones(B, 1, O, dtype=torch.bool, device=policy.device),
        state=padded(data["in.state"], cfg.max_state_dim)[:, None],
        images=torch.stack(images, 1)[:, None],
        history_latents=latents[:, None, :O],
        target_ids=ids[:, None, sizes.num_observed],
        action_chunk=padded(data["in.action"], cfg.max_action_dim),
    )


def padded(x: Tensor, width: int) -> Tensor:
    """Zeros appended to the last axis up to `width`."""
    return F.pad(x, (0, width - x.shape[-1]))


# --- outputs ----------------------------------------------------------------------------------------------------------


def tokenizer_outputs(policy: F1Policy, data: Outputs, sizes: Sizes) -> Outputs:
    tokenizer, shape = policy.tokenizer, data["in.history"].shape[:2]
    latent = tokenizer.encode_latent(data["in.history"].float().flatten(0, 1))
    ids, fhat = tokenizer.quantize.quantize(latent)
    target = fhat.unflatten(0, shape)[:, sizes.num_observed]
    return {
        "out.vae.latent": latent,
        **{f"out.vae.idx.{k}": x for k, x in enumerate(ids)},
        "out.vae.fhat": fhat,
        "out.vae.var_input": tokenizer.ids_to_var_input(torch.cat(ids, 1)).unflatten(0, shape),
        "out.vae.recon": tokenizer.decode(target),
        "out.vae.recon_unclamped": tokenizer.decode(target[:1], clamp=False),
    }


def input_outputs(policy: F1Policy, data: Outputs, batch: F1Batch) -> Outputs:
    und, valid = policy.und_inputs(batch)
    out = {"out.und_embs": und[:, 0], "out.und_pad_mask": valid[:, 0], "out.prep.state": batch.state[:, 0]}
    out["out.prep.action"] = batch.require("action_chunk", "the fixture")
    for i in [i for i in range(MAX_CAMERAS) if f"in.image{i}" in data]:
        image = data[f"in.image{i}"]
        hidden = policy.vision.features(image)
        out[f"out.prep.image{i}"] = policy.vision.prepare(image)
        out[f"out.siglip.image{i}.last_hidden"] = hidden
        out[f"out.siglip.image{i}.projected"] = policy.vision.project(hidden)
    return out


def gradients_of(policy: F1Policy, spec: dict[str, Any], loss: Tensor, prefix: str) -> Outputs:
    """d loss / d parameter for every parameter that the fixture names; zeros where the loss does not reach it."""
    parameters = dict(policy.named_parameters())
    named = {}
    for short, released in spec["grad_parameters"].items():
        own = weights.own_name(released)
        if own is None:
            raise ValueError(f"grad_parameters.{short}: the model has no parameter {released}")
        named[short] = parameters[own]
    grads = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        f"{prefix}.{n}": torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)
    }


def teacher_forced_outputs(
    policy: F1Policy, spec: dict[str, Any], data: Outputs, batch: F1Batch, sizes: Sizes, gradients: bool
) -> Outputs:
    configured = policy.cfg.world_model.num_resolutions
    policy.cfg.world_model.num_resolutions = sizes.forced_resolutions
    h = policy.initial_memory_state(batch.size)
    with recorded_calls(policy.trunk) as calls, torch.set_grad_enabled(gradients):
        result = policy(batch, mode="world_model", initial_memory_state=h, return_logits=True)
    policy.cfg.world_model.num_resolutions = configured
    call, logits = calls[0], result["logits"][:, 0]
    valid = call.visible.any(-1)[:, : call.outputs["und"].shape[1]]
    out = {
        "gen_embs": call.inputs["gen"],
        "att_mask": call.visible,
        "position_ids": call.positions,
        "gen_hidden": call.outputs["gen"],
        "und_hidden_masked": call.outputs["und"] * valid[..., None],
        "logits": logits,
        "targets": batch.require("target_ids", "the fixture")[:, 0, : logits.shape[1]],
        "loss": result["loss"],
        "acc_mean": result["metrics"]["accuracy"],
        "acc_tail": tail_accuracy(result["correct"][:, 0], sizes.forced_resolutions),
    }
    out = {f"out.tf.{n}": x for n, x in out.items()}
    return out | (gradients_of(policy, spec, result["loss"], "out.tf.grad") if gradients else {})


def joint_outputs(policy: F1Policy, spec: dict[str, Any], data: Outputs, batch: F1Batch, gradients: bool) -> Outputs:
    """The full path with greedy foresight; once more with padded actions when the fixture has them."""
    h = policy.initial_memory_state(batch.size)
    fixed = {"sampling": Sampling(), "noise": data["in.noise"], "time": data["in.time"]}
    out: Outputs = {}
    runs = {"out.full": None} | ({"out.full_pad": data["in.action_is_pad"]} if "in.action_is_pad" in data else {})
    for prefix, is_pad in runs.items():
        step = replace(batch, action_is_pad=is_pad)
        with recorded_calls(policy.trunk) as calls, torch.set_grad_enabled(gradients):
            result = policy(
                step, mode="joint", initial_memory_state=h, world_model_loss_ratio=WORLD_MODEL_LOSS_RATIO, **fixed
            )
        found = {n: result[n] for n in LOSSES}
        found |= {n: result[n] for n in ("action_losses", "x_t", "u_t")} | {"v_t": result["velocity"]}
        found |= {"wm_logits": result["foresight"].logits, "greedy_ids": result["foresight"].ids}
        found["time_emb"] = time_embedding(data["in.time"], policy.flow.width)
        found |= call_outputs(calls)
        out |= {f"{prefix}.{n}": x for n, x in found.items()}
        if gradients:
            for short, loss in (("wm", "wm_loss"), ("action", "action_loss"), ("total", "loss")):
                out |= gradients_of(policy, spec, result[loss], f"{prefix}.grad_{short}")
    return out


def call_outputs(calls: list[TrunkCall]) -> Outputs:
    """Prefix call, one call a later scale, suffix call."""
    prefix, *scales, suffix = calls
    out = {
        "gen_prefix_embs": prefix.inputs["gen"],
        "gen_prefix_hidden": prefix.outputs["gen"],
        "prefix_att_mask": prefix.visible,
        "prefix_position_ids": prefix.positions,
        "suffix_embs": suffix.inputs["act"],
        "suffix_hidden": suffix.outputs["act"],
        "suffix_att_mask": suffix.visible,
        "suffix_position_ids": suffix.positions,
    }
    for k, call in enumerate(scales, 1):
        out |= {f"scale{k}.gen_embs": call.inputs["gen"], f"scale{k}.gen_hidden": call.outputs["gen"]}
        out |= {f"scale{k}.att_mask": call.visible, f"scale{k}.position_ids": call.positions}
    return out


def sample_outputs(policy: F1Policy, data: Outputs, batch: F1Batch) -> Outputs:
    h = policy.initial_memory_state(batch.size)
    acted = policy(batch, mode="actions", initial_memory_state=h, noise=data["in.noise"], sampling=Sampling())
    foresight = acted["foresight"]
    return {
        "out.sample.actions": acted["actions"],
        "out.sample.x_before_step": acted["chain"][:-1],
        "out.sample.v": acted["velocities"],
        "out.sample.time": acted["times"],
        "out.sample.wm_logits": foresight.logits,
        "out.sample.greedy_ids": foresight.ids,
        "out.sample.fhat": foresight.fhat,
        "out.sample.pred_image": policy.tokenizer.decode(foresight.fhat[:1]),
    }


def auxiliary_outputs(policy: F1Policy, spec: dict[str, Any], data: Outputs) -> Outputs:
    """Resizing alone, metrics of given logits, the quantiser with other scales."""
    out: Outputs = {}
    side = policy.cfg.vision.image_size
    for name in [n for n in data if n.startswith("aux.resize.in")]:
        target = data.get(name.replace(".in", ".out"), data[name].new_zeros(side, side)).shape[-2:]
        out[name.replace(".in", ".out")] = resize_with_pad(data[name], width=target[1], height=target[0])
    if "aux.metrics.logits" in data:
        logits, targets = data["aux.metrics.logits"], data["aux.metrics.targets"]
        correct = logits.argmax(-1) == targets
        out["aux.metrics.wm_loss"] = token_nll(logits, targets).mean()
        out["aux.metrics.acc_mean"] = correct.float().mean()
        out["aux.metrics.acc_tail"] = tail_accuracy(correct, policy.cfg.world_model.num_resolutions)
    if "aux.quant10.in.ids" in data:
        quantizer = auxiliary_quantizer(spec["aux_quant10"]).to(policy.device)
        ids = data["aux.quant10.in.ids"]
        out["aux.quant10.var_input"] = quantizer.ids_to_var_input(ids)
        out["aux.quant10.fhat"] = quantizer.ids_to_fhat(ids)
    return out


def auxiliary_quantizer(spec: dict[str, Any]) -> MultiScaleQuantizer:
    """A quantiser alone, weights by their own names and factors."""
    scales = spec["patch_nums"]
    quantizer = MultiScaleQuantizer(TokenizerConfig(16 * scales[-1], scales, spec["vocab"], spec["channels"]))
    state = quantizer.state_dict()
    for e in spec["weights"]:
        g = torch.Generator().manual_seed(zlib.crc32(e["name"].encode()))
        state[e["name"].removeprefix("aux.quant10.")] = e["scale"] * torch.randn(e["shape"], generator=g)
    quantizer.load_state_dict(state)
    return quantizer
