"""Numbers of the public F1-VLA code (float32, tiny sizes) against ours. Tolerances: 1e-4, gradients 1e-3 relative."""

import pytest
import torch

from f1_vla import weights
from f1_vla.batch import F1Batch
from f1_vla.config import TokenizerConfig
from f1_vla.flow import time_embedding
from f1_vla.rollout import Sampling
from f1_vla.tokenizer import MultiScaleQuantizer
from f1_vla.trunk import Trunk
from f1_vla.vision import resize_with_pad
from f1_vla.world_model import tail_accuracy, token_nll
from kernels import BlockMask


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    if expected.dtype.is_floating_point:
        assert (actual - expected).abs().max().item() <= atol
    else:
        assert torch.equal(actual, expected)


def grad_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert (actual - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.fixture(scope="module")
def batch(parity_policy, parity_data) -> F1Batch:
    """The fixture's inputs as one step; the action and state conditioning reads them but has no effect yet."""
    d, p = parity_data, parity_policy
    images = torch.stack([d["in.image0"], d["in.image1"]], 1)
    masks = torch.stack([d["in.image0_mask"], d["in.image1_mask"]], 1)
    with torch.no_grad():
        frames = d["in.history"].float().flatten(0, 1)
        ids = p.tokenizer.img_to_ids(frames).view(2, 5, -1)
        latents = p.tokenizer.encode_latent(frames).unflatten(0, (2, 5))
    state = torch.nn.functional.pad(d["in.state"], (0, 24))[:, None]
    return F1Batch(
        lang_tokens=d["in.lang_tokens"],
        lang_masks=d["in.lang_masks"],
        camera_mask=masks[:, None],
        history_ids=ids[:, None, :4],
        history_mask=torch.ones(2, 1, 4, dtype=torch.bool),
        actions=torch.ones(2, 1, 4, 32),
        action_known=torch.ones(2, 1, 4, dtype=torch.bool),
        state=state,
        images=images[:, None],
        history_latents=latents[:, None, :4],
        target_ids=ids[:, None, 4],
        action_chunk=torch.nn.functional.pad(d["in.action"], (0, 25)),
    )


@pytest.fixture
def calls(monkeypatch) -> list[dict]:
    """Records every call of the trunk: streams in, mask, positions, streams out."""
    seen: list[dict] = []
    original = Trunk.forward

    def spy(self, streams, positions, block, valid, cache=None, keep_cache=False):
        out, new = original(self, streams, positions, block, valid, cache, keep_cache)
        k_block = block if cache is None else torch.cat([cache.block, block], 1)
        k_valid = valid if cache is None else torch.cat([cache.valid, valid], 1)
        visible = BlockMask(block, k_block, valid, k_valid).visible()
        seen.append({"in": streams, "out": out, "positions": positions, "visible": visible})
        return out, new

    monkeypatch.setattr(Trunk, "forward", spy)
    return seen


def start(policy):
    policy.zero_grad(set_to_none=True)
    return policy.initial_memory_state(2)


def grads(policy, spec, names) -> dict[str, torch.Tensor]:
    params = dict(policy.named_parameters())
    return {n: params[weights.own_name(spec["grad_parameters"][n])].grad.clone() for n in names}


def test_recipe_reproduces_the_checksums_of_every_weight(parity_spec, parity_state):
    for e in parity_spec["state_dict"]:
        if e["name"] in parity_state:
            w = parity_state[e["name"]].double()
            bound = 1e-5 * (w.numel() * e["sumsq"]) ** 0.5
            assert abs(w.sum().item() - e["sum"]) <= bound, e["name"]


def test_tokenizer_encodes_quantises_and_decodes_like_var(parity_policy, parity_data):
    d, tok = parity_data, parity_policy.tokenizer
    with torch.no_grad():
        latent = tok.encode_latent(d["in.history"].float().flatten(0, 1))
        ids, fhat = tok.quantize.quantize(latent)
        all_ids = torch.cat(ids, 1)
        var = tok.ids_to_var_input(all_ids)
        pred = tok.ids_to_fhat(all_ids).view(2, 5, 8, 4, 4)[:, 4]
        close(latent, d["out.vae.latent"])
        for k in range(4):
            close(ids[k], d[f"out.vae.idx.{k}"])
        close(fhat, d["out.vae.fhat"])
        close(tok.ids_to_fhat(all_ids), d["out.vae.fhat"])
        close(var.view(2, 5, 29, 8), d["out.vae.var_input"])
        close(tok.decode(pred), d["out.vae.recon"])
        close(tok.decode(pred[:1], clamp=False), d["out.vae.recon_unclamped"])


def test_quantiser_of_the_full_size_scales_chooses_the_same_convolutions(parity_spec, parity_data):
    import zlib

    scales = parity_spec["aux_quant10"]["patch_nums"]
    q = MultiScaleQuantizer(TokenizerConfig(256, scales, 16, 4))
    assert q.phi_of_scale == parity_spec["aux_quant10"]["phi_index_per_scale"]
    state = q.state_dict()
    for e in parity_spec["aux_quant10"]["weights"]:
        g = torch.Generator().manual_seed(zlib.crc32(e["name"].encode()))
        state[e["name"].removeprefix("aux.quant10.")] = e["scale"] * torch.randn(e["shape"], generator=g)
    q.load_state_dict(state)
    ids = parity_data["aux.quant10.in.ids"]
    with torch.no_grad():
        close(q.ids_to_var_input(ids), parity_data["aux.quant10.var_input"])
        close(q.ids_to_fhat(ids), parity_data["aux.quant10.fhat"])


def test_pictures_are_resized_padded_and_encoded_like_siglip(parity_policy, parity_data, batch):
    d, v = parity_data, parity_policy.vision
    for i in range(2):
        close(resize_with_pad(d[f"aux.resize.in{i}"], 28, 28), d[f"aux.resize.out{i}"])
        close(v.prepare(d[f"in.image{i}"]), d[f"out.prep.image{i}"])
        with torch.no_grad():
            hidden = v.features(d[f"in.image{i}"])
            close(hidden, d[f"out.siglip.image{i}.last_hidden"])
            close(v.project(hidden), d[f"out.siglip.image{i}.projected"])
    with torch.no_grad():
        und, valid = parity_policy.und_inputs(batch)
    close(und[:, 0], d["out.und_embs"])
    close(valid[:, 0], d["out.und_pad_mask"])


def test_teacher_forced_path_matches_with_memory_conditioning_and_latent_head_on(
    parity_policy, parity_spec, parity_data, batch, calls
):
    d, p = parity_data, parity_policy
    h = start(p)
    out = p(batch, mode="world_model", initial_memory_state=h, return_logits=True)
    call = calls[0]
    close(call["in"]["gen"], d["out.tf.gen_embs"])
    close(call["visible"], d["out.tf.att_mask"])
    close(call["positions"], d["out.tf.position_ids"])
    close(call["out"]["gen"], d["out.tf.gen_hidden"])
    close(call["out"]["und"] * d["out.und_pad_mask"][..., None], d["out.tf.und_hidden_masked"])
    close(out["logits"][:, 0], d["out.tf.logits"])
    close(batch.target_ids[:, 0], d["out.tf.targets"])
    close(out["loss"], d["out.tf.loss"])
    close(out["metrics"]["accuracy"], d["out.tf.acc_mean"])
    close(tail_accuracy(out["correct"][:, 0], 4), d["out.tf.acc_tail"])
    out["loss"].backward()
    names = ("gen_q_last", "temporal_conv", "und_k0", "und_q0", "wm_embeddings", "wm_out_proj")
    for n, g in grads(p, parity_spec, names).items():
        grad_close(g, d[f"out.tf.grad.{n}"])


def test_roll_out_and_action_head_match(parity_policy, parity_data, batch, calls):
    d, p = parity_data, parity_policy
    with torch.no_grad():
        out = p(
            batch,
            mode="joint",
            initial_memory_state=start(p),
            sampling=Sampling(),
            noise=d["in.noise"],
            time=d["in.time"],
        )
    prefix, suffix = calls[0], calls[-1]
    close(prefix["in"]["gen"], d["out.full.gen_prefix_embs"])
    close(prefix["out"]["gen"], d["out.full.gen_prefix_hidden"])
    close(prefix["visible"], d["out.full.prefix_att_mask"])
    close(prefix["positions"], d["out.full.prefix_position_ids"])
    for k in (1, 2, 3):
        close(calls[k]["in"]["gen"], d[f"out.full.scale{k}.gen_embs"])
        close(calls[k]["out"]["gen"], d[f"out.full.scale{k}.gen_hidden"])
        close(calls[k]["visible"], d[f"out.full.scale{k}.att_mask"])
        close(calls[k]["positions"], d[f"out.full.scale{k}.position_ids"])
    close(out["foresight"].logits, d["out.full.wm_logits"])
    close(out["foresight"].ids, d["out.full.greedy_ids"])
    close(time_embedding(d["in.time"], 32), d["out.full.time_emb"])
    close(suffix["in"]["act"], d["out.full.suffix_embs"])
    close(suffix["out"]["act"], d["out.full.suffix_hidden"])
    close(suffix["visible"], d["out.full.suffix_att_mask"])
    close(suffix["positions"], d["out.full.suffix_position_ids"])
    close(out["velocity"], d["out.full.v_t"])
    close(out["action_losses"], d["out.full.action_losses"])
    for n in ("wm_loss", "acc_mean", "acc_tail", "action_loss", "loss"):
        close(out[n], d[f"out.full.{n}"])


@pytest.mark.parametrize(
    ("loss", "prefix", "pad", "names"),
    [
        ("wm_loss", "out.full.grad_wm", False, ("gen_q_last", "und_k0", "und_q0", "wm_out_proj")),
        ("action_loss", "out.full.grad_action", False, ("action_in_proj", "gen_k0", "und_k0")),
        ("loss", "out.full.grad_total", False, ("action_in_proj", "gen_q_last", "und_q0", "wm_out_proj")),
        ("action_loss", "out.full_pad.grad_action", True, ("action_in_proj", "gen_k0", "und_k0")),
    ],
)
def test_joint_gradients_match(parity_policy, parity_spec, parity_data, batch, loss, prefix, pad, names):
    d, p = parity_data, parity_policy
    batch = batch.rows(slice(None))
    batch.action_is_pad = d["in.action_is_pad"] if pad else None
    h = start(p)
    out = p(batch, mode="joint", initial_memory_state=h, sampling=Sampling(), noise=d["in.noise"], time=d["in.time"])
    out[loss].backward()
    for n, g in grads(p, parity_spec, names).items():
        grad_close(g, d[f"{prefix}.{n}"])
    if pad:
        close(out["action_loss"], d["out.full_pad.action_loss"])
        close(out["loss"], d["out.full_pad.loss"])


def test_sampled_actions_and_predicted_picture_match(parity_policy, parity_data, batch):
    d, p = parity_data, parity_policy
    noise = d["in.noise"].clone()
    with torch.no_grad():
        out = p(batch, mode="actions", initial_memory_state=start(p), noise=noise)
        pred = p(batch, mode="predict_images", initial_memory_state=start(p))
    close(out["actions"], d["out.sample.actions"])
    close(out["chain"][:-1], d["out.sample.x_before_step"])
    close(out["velocities"], d["out.sample.v"])
    close(out["times"], d["out.sample.time"])
    close(out["foresight"].logits, d["out.sample.wm_logits"])
    close(out["foresight"].ids, d["out.sample.greedy_ids"])
    close(pred["fhat"], d["out.sample.fhat"])
    close(pred["images"][:1], d["out.sample.pred_image"])
    assert torch.equal(noise, d["in.noise"])  # the reference overwrites it; we do not


def test_loss_and_accuracies_of_a_given_logit_tensor_match(parity_data):
    d = parity_data
    logits, targets = d["aux.metrics.logits"], d["aux.metrics.targets"]
    correct = logits.argmax(-1) == targets
    close(token_nll(logits, targets).mean(), d["aux.metrics.wm_loss"])
    close(correct.float().mean(), d["aux.metrics.acc_mean"])
    close(tail_accuracy(correct, 4), d["aux.metrics.acc_tail"])
