"""Roll-out, sampling, action head, pictures, text and building."""

import dataclasses
import logging
import math

import pytest
import torch

import kernels
from f1_vla import vision as vision_module
from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy
from f1_vla.config import VisionConfig
from f1_vla.flow import action_errors, sample_time, time_embedding
from f1_vla.rollout import Decoding, Sampling, draw_tokens
from f1_vla.text import ByteTokenizer, build_text_tokenizer
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.vision import Vision, resize_with_pad, to_unit_float
from rl.config import load_model


def h0(policy, batch: F1Batch):
    return policy.initial_memory_state(batch.size)


def with_actions(batch: F1Batch, cfg) -> F1Batch:
    return dataclasses.replace(batch, action_chunk=torch.randn(batch.size, cfg.chunk_size, cfg.max_action_dim))


@pytest.mark.parametrize("preset", ["debug_test", "tiny"])
def test_presets_build_and_run_every_mode(preset, make_batch):
    cfg = load_model(preset)
    policy = build_policy(cfg).eval()
    batch = with_actions(make_batch(cfg, T=1), cfg)
    L = cfg.tokenizer.num_tokens
    with torch.no_grad():
        joint = policy(batch, mode="joint", initial_memory_state=h0(policy, batch))
        acted = policy(batch, mode="actions", initial_memory_state=h0(policy, batch))
        seen = policy.predict_images_only(batch, initial_memory_state=h0(policy, batch))
        taught = policy.forward_with_world_model(batch, initial_memory_state=h0(policy, batch))
    assert joint["loss"].isfinite()
    assert acted["actions"].shape == (2, cfg.chunk_size, 32)
    assert acted["chain"].shape == (cfg.num_denoise_steps + 1, 2, cfg.chunk_size, 32)
    assert seen["images"].shape == (2, 3, 64, 64) and seen["ids"].shape == (2, L)
    assert taught["memory_state"].shape == (cfg.memory.memory_num_layers, 2, cfg.memory.memory_hidden)


def test_roll_out_on_its_own_tokens_gives_the_teacher_forced_logits_of_those_tokens(
    debug_policy, debug_config, make_batch
):
    debug_config.world_model.latent_head = True
    debug_config.world_model.latent_head_width = 8
    policy = build_policy(debug_config).eval()
    with torch.no_grad():  # the latent head and the conditioning act
        for layer in (policy.world_model.latent_head.to_latent, policy.world_model.latent_head.to_tokens):
            layer.weight.normal_(std=0.1)
        policy.world_model.latent_head.logit_scale.fill_(1.0)
        policy.world_model.condition.out.weight.normal_(std=0.1)
        policy.memory.out_proj.weight.normal_()
        batch, h = make_batch(debug_config, T=1), torch.randn(2, 2, 16)
        rolled = policy(batch, mode="predict_images", initial_memory_state=h)
        batch.target_ids = rolled["ids"][:, None]
        forced = policy(batch, mode="world_model", initial_memory_state=h, return_logits=True)
    torch.testing.assert_close(rolled["logits"], forced["logits"][:, 0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rolled["predicted_latent"], forced["predicted_latent"][:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rolled["memory_state"], forced["memory_state"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rolled["fhat"], policy.tokenizer.ids_to_fhat(rolled["ids"]), atol=1e-5, rtol=1e-5)


def test_latent_loss_is_zero_for_a_perfect_prediction_and_skips_invalid_steps(debug_config, make_batch):
    debug_config.world_model.latent_head = True
    debug_config.world_model.latent_head_width = 8
    policy = build_policy(debug_config).eval()
    batch = make_batch(debug_config, T=2)
    batch.target_latents = batch.history_latents[:, :, -1].clone()  # an untrained head predicts the last frame
    batch.target_latents[1, 1] += 2.0
    out = policy(batch, mode="world_model_window", initial_memory_state=h0(policy, batch))
    assert out["latent_loss"].item() == pytest.approx(4.0 / 4)
    batch.valid[1, 1] = False
    out = policy(batch, mode="world_model_window", initial_memory_state=h0(policy, batch))
    assert out["latent_loss"].item() == 0.0


def test_memory_can_be_written_after_the_action_is_known(debug_policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    batch.reset[0] = True
    h = torch.randn(2, 2, 16)
    with torch.no_grad():
        acted = debug_policy(batch, mode="actions", initial_memory_state=h)
        action = batch.actions[:, 0, -1]
        late = debug_policy(
            batch, mode="write_memory", initial_memory_state=h, memory_features=acted["memory_features"], action=action
        )
        together = debug_policy(batch, mode="predict_images", initial_memory_state=h)
    assert torch.equal(late["memory_state"], together["memory_state"])


def test_action_loss_reaches_und_and_gen_weights_through_the_cache(debug_policy, debug_config, make_batch):
    batch = with_actions(make_batch(debug_config, T=1), debug_config)
    out = debug_policy(batch, mode="joint", initial_memory_state=h0(debug_policy, batch), world_model_loss_ratio=0.0)
    out["action_loss"].backward()
    for expert in (debug_policy.trunk.und, debug_policy.trunk.gen, debug_policy.trunk.act):
        assert expert.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("mode", ["joint", "actions"])
def test_acting_never_sees_the_action_it_has_to_choose(debug_policy, debug_config, make_batch, mode):
    torch.nn.init.normal_(debug_policy.world_model.condition.out.weight)
    batch = with_actions(make_batch(debug_config, T=1), debug_config)
    batch.action_known[:] = True
    other = dataclasses.replace(batch, actions=batch.actions.clone())
    other.actions[:, :, -1] += 1.0
    noise = torch.randn_like(batch.action_chunk)
    options = {"time": torch.tensor([0.3, 0.6])} if mode == "joint" else {}
    with torch.no_grad():
        a, b = (
            debug_policy(
                x, mode=mode, initial_memory_state=h0(debug_policy, x), sampling=Sampling(), noise=noise, **options
            )
            for x in (batch, other)
        )
    assert torch.equal(a["foresight"].logits, b["foresight"].logits)
    key = "velocity" if mode == "joint" else "actions"
    assert torch.equal(a[key], b[key])


def test_images_given_raw_equal_precomputed_features(debug_policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=2)
    frames = torch.randint(0, 256, (4, 2, 64, 64, 3), dtype=torch.uint8)
    features = debug_policy.encode_frames(torch.rand(4, 3, 64, 64), frames).vision
    raw = to_unit_float(frames).unflatten(0, (2, 2))
    with torch.no_grad():
        a = debug_policy.und_inputs(dataclasses.replace(batch, vision=features.unflatten(0, (2, 2))))[0]
        b = debug_policy.und_inputs(dataclasses.replace(batch, vision=None, images=raw))[0]
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"F1Batch\.images is None"):
        debug_policy.und_inputs(dataclasses.replace(batch, vision=None))


def test_frames_are_encoded_once_into_ids_and_latents(debug_policy):
    frame = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    out = debug_policy.encode_frames(frame)
    expected = debug_policy.tokenizer.img_to_ids(frame.permute(0, 3, 1, 2).float() / 255 * 2 - 1)
    assert torch.equal(out.ids, expected) and out.latents.shape == (3, 8, 4, 4) and out.vision is None
    with pytest.raises(ValueError, match="expects 64x64"):
        debug_policy.encode_frames(frame[:, :32])
    with pytest.raises(ValueError, match=r"must be \(frames, cameras, \.\.\.\), got \(3, 64, 64, 3\)"):
        debug_policy.encode_frames(frame, frame)


def test_unknown_mode_and_several_steps_where_one_is_meant_are_refused(debug_policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=2)
    with pytest.raises(ValueError, match="mode 'teacher' is unknown"):
        debug_policy(batch, mode="teacher", initial_memory_state=h0(debug_policy, batch))
    with pytest.raises(ValueError, match="takes one step"):
        debug_policy(batch, mode="actions", initial_memory_state=h0(debug_policy, batch))
    with pytest.raises(ValueError, match="action_chunk is None"):
        debug_policy(batch.window(0, 1), mode="joint", initial_memory_state=h0(debug_policy, batch))


# --- drawing tokens ---------------------------------------------------------------------------------------------------


def test_top_k_and_top_p_keep_the_smallest_sufficient_set():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    drawn = lambda **kw: set(draw_tokens(logits, Sampling(Decoding.sample, **kw)).tolist())  # noqa: E731
    assert drawn(top_k=900, top_p=1.0) == {0, 1, 2, 3}
    assert drawn(top_k=2, top_p=1.0) == {0, 1}
    # ascending cumulative mass .05, .2, .5, 1: tokens at or below 1 - p are dropped
    assert drawn(top_k=900, top_p=0.79) == {0, 1}
    assert drawn(top_k=900, top_p=0.01) == {0}
    assert drawn(top_k=1, top_p=0.95) == {0}


def test_drawn_frequencies_follow_the_distribution():
    logits = torch.tensor([0.6, 0.4]).log().expand(20000, 2)
    share = draw_tokens(logits, Sampling(Decoding.sample, top_p=1.0)).float().mean().item()
    assert abs(share - 0.4) < 4 * math.sqrt(0.24 / 20000)


def test_soft_decoding_of_certain_logits_equals_greedy(debug_policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    with torch.no_grad():
        debug_policy.world_model.out_proj.weight.mul_(1e4)
        soft, greedy = (
            debug_policy(
                batch, mode="predict_images", initial_memory_state=h0(debug_policy, batch), sampling=Sampling(d)
            )
            for d in (Decoding.soft, Decoding.greedy)
        )
    assert torch.equal(soft["ids"], greedy["ids"])
    torch.testing.assert_close(soft["fhat"], greedy["fhat"], atol=1e-3, rtol=1e-3)


# --- flow -------------------------------------------------------------------------------------------------------------


def test_time_embedding_is_sines_then_cosines_of_periods_from_4_ms_to_4_s():
    t = 0.3
    out = time_embedding(torch.tensor([t], dtype=torch.float64), 4)[0]
    expected = [math.sin(2 * math.pi * t / p) for p in (0.004, 4.0)] + [
        math.cos(2 * math.pi * t / p) for p in (0.004, 4.0)
    ]
    torch.testing.assert_close(out, torch.tensor(expected), atol=1e-5, rtol=0)


def test_sampled_times_have_the_mean_of_beta():
    t = sample_time(20000, "cpu")
    assert t.min() >= 0.001 and t.max() <= 1.0
    assert abs(t.mean().item() - (0.001 + 0.999 * 0.6)) < 0.01


def test_padded_actions_stay_in_the_denominator():
    v, target = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert action_errors(v, target, torch.tensor([[False, True]])).mean().item() == 0.5


# --- pictures and text ------------------------------------------------------------------------------------------------


def test_resize_keeps_the_aspect_and_pads_left_and_top():
    out = resize_with_pad(torch.ones(1, 3, 4, 8), 4, 4)
    assert torch.equal(out[0, 0], torch.tensor([[0.0] * 4, [0.0] * 4, [1.0] * 4, [1.0] * 4]))
    out = resize_with_pad(torch.ones(1, 3, 8, 4), 4, 4)
    assert torch.equal(out[0, 0], torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 4))


def test_pictures_of_the_wrong_layout_are_refused():
    with pytest.raises(ValueError, match="channel-last"):
        to_unit_float(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="channel-first"):
        to_unit_float(torch.zeros(2, 8, 8, 3))


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (torch.full((1, 3, 8, 8), 255.0), r"lie in \[255, 255\]; divide 0\.\.255 by 255"),
        (torch.full((1, 3, 8, 8), -1.0), r"map \[-1, 1\] with"),
        (torch.full((1, 3, 8, 8), float("nan")), "must lie in"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_pictures_of_the_wrong_range_or_dtype_are_refused_with_the_remedy(
    debug_policy, debug_config, make_batch, pictures, message
):
    with pytest.raises(ValueError, match=message):
        debug_policy.encode_frames(pictures)
    images = pictures.expand(2, 3, 2, 3, 8, 8)
    with pytest.raises(ValueError, match=message):
        debug_policy.und_inputs(dataclasses.replace(make_batch(debug_config), vision=None, images=images))


def test_byte_tokenizer_shifts_bytes_appends_a_newline_pads_and_cuts():
    ids, valid = ByteTokenizer(5, 512)(["ab", "abcdefg"])
    assert ids.tolist() == [[100, 101, 13, 0, 0], [100, 101, 102, 103, 104]]
    assert valid.tolist() == [[True, True, True, False, False], [True] * 5]
    with pytest.raises(ValueError, match="needs 259"):
        ByteTokenizer(5, 256)
    with pytest.raises(ValueError, match="not a directory"):
        build_text_tokenizer("nowhere", 5, 512)


# --- building ---------------------------------------------------------------------------------------------------------


def test_attention_of_every_use_is_decided_and_logged_when_the_policy_is_built(debug_config, caplog):
    debug_config.trunk.head_dim = 24  # a size that no other test has decided
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        policy = build_policy(debug_config, compute=torch.bfloat16)
    assert policy.trunk.backend == "auto"
    said = [m for m in caplog.messages if "head size 24" in m]
    for use, message in zip(("inference", "decode", "training"), said, strict=True):
        assert message.startswith(f"attention ({use}, cpu, bfloat16, head size 24, blocks): matmul")


@pytest.mark.parametrize("backend", kernels.available_backends())
def test_vision_tower_attends_through_the_kernels_and_equals_the_library_s_own(backend, monkeypatch):
    cfg = VisionConfig(28, 14, 24, 32, 2, 3, attention_backend=backend)  # head size 8
    vision = Vision(cfg, 16, pad=True).eval()
    vision.choose_backend("cpu", torch.float32)
    pictures, used = torch.rand(2, 3, 28, 28), []
    original = vision_module.kernels.attention
    monkeypatch.setattr(
        vision_module.kernels, "attention", lambda *a, **kw: (used.append(kw["backend"]), original(*a, **kw))[1]
    )
    with torch.no_grad():
        found = vision.features(pictures)
        vision.tower.config._attn_implementation = "eager"
        expected = vision.features(pictures)
    assert used == [backend] * 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_contradicting_sizes_and_a_foreign_tokenizer_are_refused(debug_config):
    other = dataclasses.replace(debug_config.tokenizer, vocab_size=64)
    with pytest.raises(ValueError, match="tokenizer was built for"):
        build_policy(debug_config, tokenizer=MultiScaleVQVAE(other))
    debug_config.tokenizer.image_size = 32
    with pytest.raises(ValueError, match=r"tokenizer\.image_size"):
        build_policy(debug_config)


def test_tokenizer_is_frozen_and_stays_in_eval_mode(debug_policy):
    debug_policy.train()
    assert not debug_policy.tokenizer.training
    assert not any(p.requires_grad for p in debug_policy.tokenizer.parameters())


def test_same_seed_gives_the_same_weights(debug_config):
    def state():
        torch.manual_seed(11)
        return build_policy(debug_config).state_dict()

    a, b = state(), state()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_batch_windows_and_rows_select_the_right_axes(debug_config, make_batch):
    batch = with_actions(make_batch(debug_config, B=3, T=4), debug_config)
    part = batch.window(1, 3).rows(torch.tensor([2]))
    assert part.steps == 2 and part.size == 1
    assert torch.equal(part.history_ids, batch.history_ids[2:3, 1:3])
    assert torch.equal(part.lang_tokens, batch.lang_tokens[2:3])
    assert torch.equal(part.action_chunk, batch.action_chunk[2:3])
