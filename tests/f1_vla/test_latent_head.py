"""The latent head: no effect until trained, and a prior that is the distance to what is left of the latent."""

import numpy as np
import pytest
import torch

from f1_vla.config import TokenizerConfig
from f1_vla.latent_head import LatentHead
from f1_vla.tokenizer import MultiScaleQuantizer

SCALES, CHANNELS, CODES = [1, 2, 4], 3, 7
SLOTS, CONDITION, MEMORY, TRUNK = 2, 5, 6, 10


def _head(logit_scale: float) -> LatentHead:
    return LatentHead(
        channels=CHANNELS, num_obs=SLOTS, side=4, cond_dim=CONDITION, memory_dim=MEMORY, width=8, blocks=2,
        trunk_width=TRUNK, scales=SCALES, logit_scale=logit_scale,
    )  # fmt: skip


def test_an_untrained_head_predicts_the_last_latent_and_adds_nothing() -> None:
    head, latents = _head(0.0), torch.randn(2, SLOTS, CHANNELS, 4, 4)
    predicted, features = head(latents, torch.randn(2, CONDITION), torch.randn(2, MEMORY))
    assert torch.equal(predicted, latents[:, -1])
    assert features.shape == (2, 21, TRUNK) and not features.any()
    prior = head.logit_prior(predicted, torch.randn(2, 20, CHANNELS), torch.randn(CODES, CHANNELS))
    assert prior.shape == (2, 21, CODES) and not prior.any()


def test_an_untrained_head_does_not_read_the_memory_but_learns_to() -> None:
    head, latents, condition = _head(0.0), torch.randn(2, SLOTS, CHANNELS, 4, 4), torch.randn(2, CONDITION)
    with torch.no_grad():
        head.to_latent.weight.normal_()
    memory = torch.randn(2, MEMORY, requires_grad=True)
    with_memory, without = head(latents, condition, memory)[0], head(latents, condition, None)[0]
    torch.testing.assert_close(with_memory, without)
    with_memory.square().sum().backward()
    assert head.memory.weight.grad.abs().max() > 0


@pytest.mark.parametrize("first_scale", [0, 1, 2])
def test_the_prior_is_the_scaled_squared_distance_to_what_earlier_scales_leave_over(first_scale: int) -> None:
    quantizer = MultiScaleQuantizer(TokenizerConfig(scales=SCALES, vocab_size=CODES, z_channels=CHANNELS, num_phi=2))
    head = _head(1.0)
    with torch.no_grad():
        head.logit_scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    predicted, ids = torch.randn(2, CHANNELS, 4, 4), torch.randint(CODES, (2, 21))
    var_input = quantizer.ids_to_var_input(ids)  # of scales 2 and 3, one after the other
    skipped = sum(p * p for p in SCALES[1:first_scale])
    codes = quantizer.embedding.weight.detach()
    prior = head.logit_prior(predicted, var_input[:, skipped:], codes, first_scale).softmax(-1).detach()

    for n in range(2):
        row = 0
        for k in range(first_scale, len(SCALES)):
            p, block = SCALES[k], 4 // SCALES[k]
            # What scales before k have explained, as the quantiser accumulates it.
            done = sum(
                (quantizer.enlarge(quantizer.embed(quantizer.split(ids)[j][n : n + 1], j), j)[0] for j in range(k)),
                start=torch.zeros(CHANNELS, 4, 4),
            )
            left = (predicted[n] - done).detach().reshape(CHANNELS, p, block, p, block).mean((2, 4))
            for y in range(p):
                for x in range(p):
                    scale = [0.5, 1.0, 2.0][k]
                    score = np.array([-scale * float((left[:, y, x] - c).square().sum()) for c in codes])
                    expected = np.exp(score - score.max())
                    np.testing.assert_allclose(prior[n, row].numpy(), expected / expected.sum(), atol=2e-5)
                    row += 1
        assert row == prior.shape[1]


def test_a_shorter_forced_input_gives_the_first_scales_only() -> None:
    head = _head(1.0)
    predicted, codes = torch.randn(1, CHANNELS, 4, 4), torch.randn(CODES, CHANNELS)
    var_input = torch.randn(1, 20, CHANNELS)
    full = head.logit_prior(predicted, var_input, codes)
    assert torch.equal(head.logit_prior(predicted, var_input[:, :4], codes), full[:, :5])
    assert torch.equal(head.logit_prior(predicted, var_input[:, :0], codes), full[:, :1])
