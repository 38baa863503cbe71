"""Writes parity fixtures of other configurations, computed by the published formulation (benchmarks.published_f1)."""

import json
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from benchmarks.published_f1 import Inputs, PublishedF1
from f1_vla import weights
from f1_vla.builders import build_policy
from f1_vla.parity import config_of, recipe
from f1_vla.vision import resize_with_pad

Tensors = dict[str, torch.Tensor]


def public_config(**changes) -> dict:
    """A small public configuration; `changes` by the names below."""
    c = {
        "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "und": 24, "gen": 16, "mlp": 20, "pn": "1_2_3",
        "resolutions": 3, "kernel": 4, "chunk": 3, "actions": 32, "states": 32, "lang": 5, "vocab": 32, "channels": 8,
        "image": 28, "patch": 14, "steps": 10, "text": 64,
    } | changes  # fmt: skip
    shared = {"num_attention_heads": c["heads"], "num_key_value_heads": c["kv_heads"], "head_dim": c["head_dim"],
              "num_hidden_layers": c["layers"], "vocab_size": c["text"], "intermediate_size": c["mlp"]}  # fmt: skip
    vision = {"image_size": c["image"], "patch_size": c["patch"], "hidden_size": 16, "intermediate_size": 24,
              "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    vae = {"vocab_size": c["vocab"], "z_channels": c["channels"], "ch": 32, "share_quant_resi": 4}
    return {
        "und_expert_config": {"text_config": shared | {"hidden_size": c["und"]}, "vision_config": vision},
        "gen_expert_config": shared | {
            "hidden_size": c["gen"], "pn": c["pn"], "num_resolutions": c["resolutions"], "vae": vae,
            "temporal_conv_kernel_size": c["kernel"], "temporal_conv_stride": c["kernel"],
        },
        "act_expert_config": shared | {"hidden_size": c["gen"]},
        "chunk_size": c["chunk"], "max_action_dim": c["actions"], "max_state_dim": c["states"],
        "num_steps": c["steps"], "tokenizer_max_length": c["lang"], "resize_imgs_with_padding": [c["image"]] * 2,
    }  # fmt: skip


def fill_of(name: str, tensor: torch.Tensor) -> str:
    if not name.endswith("weight") or tensor.ndim != 1:
        return "default"
    gemma = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
    return "rmsnorm_weight" if name.endswith(gemma) and "vision" not in name else "affine_norm_weight"


def entry(name: str, value: torch.Tensor, fill: str, alias_of: str | None = None) -> dict:
    x = value.double()
    sums = {"sum": x.sum().item(), "sumsq": x.square().sum().item()}
    found = {"name": name, "shape": list(value.shape), "fill": fill, **sums}
    return found | ({} if alias_of is None else {"alias_of": alias_of})


def weight_entries(policy) -> tuple[list[dict], Tensors]:
    """The `state_dict` list with second names, and the state under the names `save_model` keeps."""
    entries, state = [], {}
    for own, tensor in policy.state_dict().items():
        names = weights.released_names(own)
        if not names:
            continue
        decisive, fill = names[-1], fill_of(names[0], tensor)
        state[names[0]] = recipe(decisive, list(tensor.shape), fill)
        entries += [entry(n, state[names[0]], fill, None if n == decisive else decisive) for n in names]
    level = policy.world_model.level_of_slot[None]
    return [*entries, entry(weights.CONSTRUCTED, level, "keep")], state


def make_inputs(cfg, B: int, cameras: list[tuple[int, int]], present: list[list[bool]], seed: int) -> Tensors:
    """Random inputs: cameras of these (height, width), present or not for each sample."""
    g = torch.Generator().manual_seed(seed)
    data = {}
    for i, (size, bits) in enumerate(zip(cameras, present, strict=True)):
        data[f"in.image{i}"] = torch.rand(B, 3, *size, generator=g)
        data[f"in.image{i}_mask"] = torch.tensor(bits)
        data[f"in.image{i}"][~torch.tensor(bits)] = 0.0
    side, O = cfg.tokenizer.image_size, cfg.n_obs_img_steps  # noqa: E741
    data["in.history"] = (torch.rand(B, O + 1, 3, side, side, generator=g) * 2 - 1).half()
    n = cfg.tokenizer_max_length
    data["in.lang_masks"] = torch.arange(n) < torch.tensor([n - i for i in range(B)])[:, None]
    data["in.lang_tokens"] = torch.randint(3, 60, (B, n), generator=g) * data["in.lang_masks"]
    data["in.state"] = torch.randn(B, 5, generator=g)
    data["in.action"] = torch.randn(B, cfg.chunk_size, 6, generator=g)
    data["in.noise"] = torch.randn(B, cfg.chunk_size, cfg.max_action_dim, generator=g)
    data["in.time"] = torch.rand(B, generator=g)
    return data


def expected(policy, data: Tensors) -> Tensors:
    """Outputs of the published formulation, written down from the equations."""
    cfg, f1, B = policy.cfg, PublishedF1(policy), len(data["in.state"])
    cameras = [i for i in range(3) if f"in.image{i}" in data]
    side, R = cfg.vision.image_size, cfg.world_model.num_resolutions
    images = [resize_with_pad(data[f"in.image{i}"], side, side) * 2 - 1 for i in cameras]
    inputs = Inputs(
        images, [data[f"in.image{i}_mask"] for i in cameras], data["in.lang_tokens"], data["in.lang_masks"],
        data["in.history"].float(), F.pad(data["in.state"], (0, cfg.max_state_dim - 5)),
    )  # fmt: skip
    forced = f1.teacher_forced(inputs)
    forced.pop("pooled")
    correct = forced["logits"].argmax(-1) == forced["targets"]
    K = len(cfg.tokenizer.scales)
    forced |= {"acc_mean": correct.float().mean(), "acc_tail": correct[:, -(K**2) :].float().mean()}
    out = {f"out.tf.{n}": x for n, x in forced.items()}
    out["out.tf.grad.k0"] = torch.autograd.grad(forced["loss"], f1.w[GRADIENTS["k0"]], retain_graph=True)[0]
    rolled = f1.roll_out(inputs, R)
    action = F.pad(data["in.action"], (0, cfg.max_action_dim - 6))
    t = data["in.time"][:, None, None]
    x_t = t * data["in.noise"] + (1 - t) * action
    v = f1.velocity(inputs.state, x_t, data["in.time"], rolled)
    errors = (data["in.noise"] - action - v).square()
    targets = forced["targets"][:, : rolled["logits"].shape[1]]
    wm_loss = F.cross_entropy(rolled["logits"].flatten(0, 1), targets.flatten())
    tail = (rolled["ids"] == targets)[:, -(R**2) :].float().mean()
    full = {"wm_logits": rolled["logits"], "greedy_ids": rolled["ids"], "x_t": x_t, "v_t": v, "action_losses": errors,
            "wm_loss": wm_loss, "acc_tail": tail, "gen_prefix_embs": rolled["prefix_embs"],
            "loss": errors.mean() + 0.1 * wm_loss}  # fmt: skip
    out |= {f"out.full.{n}": x for n, x in full.items()}
    out["out.full.grad_total.k0"] = torch.autograd.grad(full["loss"], f1.w[GRADIENTS["k0"]])[0]
    with torch.no_grad():
        out |= {f"out.sample.{n}": x for n, x in f1.sample(inputs, data["in.noise"], R).items()}
        und, valid = f1.und_inputs(inputs)
        out |= {"out.und_embs": und, "out.und_pad_mask": valid}
    assert all(len(x) == B for n, x in out.items() if n.startswith("out.und"))
    return {n: x.detach().contiguous() for n, x in out.items()}


GRADIENTS = {"k0": "model.paligemma_with_expert.gemma_wm_expert.model.layers.0.self_attn.k_proj.weight"}


def write_fixture(
    directory: Path, cameras: list[tuple[int, int]], present: list[list[bool]], B: int = 2, seed: int = 0, **changes
) -> Path:
    """One fixture in the folder; returns its JSON file."""
    public = public_config(**changes)
    cfg = config_of(public)
    policy = build_policy(cfg).requires_grad_(True)
    entries, state = weight_entries(policy)
    weights.load_released(policy, state)
    inputs = make_inputs(cfg, B, cameras, present, seed)
    outputs = expected(policy, inputs)
    rules = {n: {"compare": "input"} for n in inputs}
    for n, x in outputs.items():
        rules[n] = {"compare": "max_abs_diff"} if x.is_floating_point() else {"compare": "exact"}
    spec = {
        "config": public, "derived": {"n_obs": cfg.n_obs_img_steps}, "state_dict": entries, "tensors": rules,
        "grad_parameters": GRADIENTS,
        "robustness": {"teacher_forced_num_resolutions": len(cfg.tokenizer.scales)},
    }  # fmt: skip
    file = directory / f"f1_parity_{zlib.crc32(str(changes).encode()):08x}.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    save_file(inputs | outputs, file.with_suffix(".safetensors"))
    return file
