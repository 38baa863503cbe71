"""The Euler loop compiled or recorded gives what it gives step by step, and says when it cannot run."""

import pytest
import torch

from f1_vla.acting import Denoised
from f1_vla.actor import Actor
from f1_vla.config import DenoiseMode
from f1_vla.denoise import Denoiser


def record(run):
    """Stands in for a CUDA graph: replaying runs the same function over the same memory."""
    outputs = run()

    def replay():
        for old, new in zip(outputs, run(), strict=True):
            old.copy_(new)

    return outputs, replay


def make(policy, mode: DenoiseMode) -> Denoiser:
    return Denoiser(policy, mode, compiler="aot_eager", capture=record)


def sample(policy, batch, seed: int, denoiser=None, **options):
    noise = torch.randn(batch.size, policy.cfg.chunk_size, 32, generator=torch.Generator().manual_seed(seed))
    h = policy.initial_memory_state(batch.size)
    with torch.no_grad():
        out = policy(batch, mode="actions", initial_memory_state=h, noise=noise, denoiser=denoiser, **options)
    return Denoised(out["chain"], out["velocities"], out["times"])


def assert_same(found: Denoised, expected: Denoised) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", list(DenoiseMode))
def test_every_mode_gives_the_same_chain_for_new_pictures_states_and_noise(
    debug_policy, debug_config, make_batch, mode
):
    denoiser = make(debug_policy, mode)
    for seed in (1, 2, 3):
        batch = make_batch(debug_config, T=1, seed=seed)
        assert_same(sample(debug_policy, batch, seed, denoiser), sample(debug_policy, batch, seed))
    assert denoiser.prepared == (0 if mode is DenoiseMode.eager else 1)


@pytest.mark.parametrize("mode", [DenoiseMode.compile, DenoiseMode.cuda_graph])
def test_other_rows_steps_scales_and_validity_are_prepared_anew_and_stay_right(
    debug_policy, debug_config, make_batch, mode
):
    denoiser, batch = make(debug_policy, mode), make_batch(debug_config, B=3, T=1)
    masked = make_batch(debug_config, B=3, T=1)
    masked.camera_mask = masked.camera_mask.clone()
    masked.camera_mask[1, 0, 0] = False
    calls = [(batch, {}), (batch.rows(slice(0, 2)), {}), (batch, {"num_scales": 1}), (batch, {"num_steps": 2})]
    for given, options in [*calls, (masked, {}), (batch, {})]:
        assert_same(sample(debug_policy, given, 0, denoiser, **options), sample(debug_policy, given, 0, **options))
    assert denoiser.prepared == 6


@pytest.mark.parametrize("mode", [DenoiseMode.compile, DenoiseMode.cuda_graph])
def test_half_precision_has_its_own_memory(debug_policy, debug_config, make_batch, mode):
    denoiser, batch = make(debug_policy, mode), make_batch(debug_config, T=1)
    for half in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found, expected = (sample(debug_policy, batch, 0, d, num_scales=1) for d in (denoiser, None))
        torch.testing.assert_close(found.chain, expected.chain, atol=1e-2 if half else 2e-6, rtol=1e-5)
    assert denoiser.prepared == 2


def test_with_gradients_the_loop_is_eager_and_they_flow(debug_policy, debug_config, make_batch):
    denoiser, batch = make(debug_policy, DenoiseMode.cuda_graph), make_batch(debug_config, T=1)
    noise = torch.zeros(batch.size, debug_config.chunk_size, 32)
    h = debug_policy.initial_memory_state(batch.size)
    out = debug_policy(batch, mode="actions", initial_memory_state=h, noise=noise, denoiser=denoiser)
    out["actions"].sum().backward()
    assert denoiser.prepared == 0 and debug_policy.flow.action_out_proj.weight.grad.abs().sum() > 0


def test_actor_takes_the_mode_of_the_configuration(debug_policy, debug_config, make_batch, monkeypatch):
    with pytest.raises(
        ValueError, match="denoise_mode=cuda_graph needs a CUDA device, the policy is on cpu; use eager"
    ):
        debug_policy.cfg.denoise_mode = DenoiseMode.cuda_graph
        Actor(debug_policy, 2, 8)
    debug_policy.cfg.denoise_mode = DenoiseMode.compile
    actor = Actor(debug_policy, 2, 8)
    assert actor.options["denoiser"].mode is DenoiseMode.compile


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", [DenoiseMode.compile, DenoiseMode.cuda_graph])
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_other_ways_to_run_the_loop_give_the_eager_chain(debug_policy, debug_config, make_batch, mode, half):
    policy = debug_policy.to("cuda")
    policy.trunk.choose_backend("cuda", torch.bfloat16 if half else torch.float32)
    denoiser = Denoiser(policy, mode)
    for seed in (1, 2):
        batch = make_batch(debug_config, T=1, seed=seed).to("cuda")
        noise = torch.randn(
            batch.size, debug_config.chunk_size, 32, generator=torch.Generator().manual_seed(seed)
        ).cuda()
        chains = []
        for given in (denoiser, None):
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
                out = policy(
                    batch, mode="actions", initial_memory_state=policy.initial_memory_state(batch.size), noise=noise,
                    denoiser=given, num_scales=1,
                )  # fmt: skip
            chains.append(out["chain"])
        torch.testing.assert_close(*chains, atol=2e-2 if half else 2e-5, rtol=1e-3)
    assert denoiser.prepared == 1
