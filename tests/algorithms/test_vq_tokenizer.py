"""Training of the multi-scale VQ-VAE against numbers worked out by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from f1_vla.config import TokenizerConfig
from f1_vla.tokenizer import AttnBlock, MultiScaleQuantizer, MultiScaleVQVAE, ResnetBlock
from rl.algorithms import vq_tokenizer as vq
from rl.config import TokenizerTrainingConfig

SMALL = TokenizerConfig(
    image_size=4, scales=[1, 2], vocab_size=3, z_channels=2, channels=4, channel_multipliers=[1, 1],
    norm_groups=2, num_phi=1,
)  # fmt: skip


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- k-means ---------------------------------------------------------------------------------------------------------


def test_kmeans_finds_the_means_of_clusters_that_lie_far_apart() -> None:
    means = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    rows = torch.cat([m + torch.randn(40, 2, generator=_generator(i)) for i, m in enumerate(means)])
    expected = torch.stack([part.mean(0) for part in rows.split(40)])
    best = min((vq.kmeans(rows, 3, 10, _generator(seed)) for seed in range(5)), key=lambda c: _distortion(rows, c))
    order = torch.cdist(expected, best).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(best[order], expected, atol=1e-4, rtol=0)


def _distortion(rows: Tensor, centers: Tensor) -> float:
    return float(torch.cdist(rows, centers).min(1).values.square().mean())


def test_kmeans_ends_where_every_center_is_the_mean_of_the_rows_nearest_to_it() -> None:
    rows = torch.randn(60, 3, generator=_generator())
    centers = vq.kmeans(rows, 4, 60, _generator(1))
    nearest = [min(range(4), key=lambda c: float((row - centers[c]).square().sum())) for row in rows]
    for c in range(4):
        members = rows[[i for i, n in enumerate(nearest) if n == c]]
        torch.testing.assert_close(centers[c], members.mean(0), atol=1e-5, rtol=0)


def test_an_empty_cluster_restarts_at_a_row() -> None:
    rows = torch.tensor([[1.0]] * 20 + [[5.0]])
    centers = vq.kmeans(rows, 3, 4, _generator())
    assert torch.isfinite(centers).all()
    assert all(1.0 <= c <= 5.0 for c in centers.flatten().tolist())


# --- the codebook ----------------------------------------------------------------------------------------------------


def _codebook(**settings: Any) -> tuple[MultiScaleVQVAE, vq.EMACodebook]:
    model = MultiScaleVQVAE(SMALL)
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    config = TokenizerTrainingConfig(codebook_decay=0.5, **settings)
    return model, vq.EMACodebook(model, config, _generator())


def test_codes_move_to_the_moving_average_of_their_rows() -> None:
    model, codebook = _codebook()
    codebook.update(torch.tensor([[1.0, 0.0], [3.0, 0.0], [12.0, 2.0]]), torch.tensor([0, 0, 1]))
    # code 0: total (0, 0)/2 + (4, 0)/2 = (2, 0), count 1/2 + 2/2 = 1.5;  code 1: total (11, 1), count 1
    # code 2: total (0, 5), count 1/2, so it stays
    expected = torch.tensor([[4 / 3, 0.0], [11.0, 1.0], [0.0, 10.0]])
    torch.testing.assert_close(model.quantize.embedding.weight.detach(), expected)
    assert not model.quantize.embedding.weight.requires_grad
    codebook.update(torch.tensor([[9.0, 3.0]]), torch.tensor([1]))
    # code 1: total (5.5, 0.5) + (4.5, 1.5) = (10, 2), count 1
    torch.testing.assert_close(model.quantize.embedding.weight[1].detach(), torch.tensor([10.0, 2.0]))


def test_a_code_unused_for_the_given_number_of_updates_restarts_at_a_row() -> None:
    model, codebook = _codebook(dead_code_steps=2)
    rows, index = torch.tensor([[1.0, 1.0], [9.0, 1.0]]), torch.tensor([0, 1])
    codebook.update(rows, index)
    assert model.quantize.embedding.weight[2].tolist() == [0.0, 10.0]
    codebook.update(rows, index)
    assert model.quantize.embedding.weight[2].tolist() in rows.tolist()
    assert codebook.unused.tolist() == [0.0, 0.0, 0.0] and codebook.count[2] == 1.0


def test_usage_is_the_share_of_codes_and_the_exponential_of_their_entropy() -> None:
    assert vq.codebook_usage(torch.tensor([0, 0, 3, 3]), 4) == pytest.approx((0.5, 2.0))
    assert vq.codebook_usage(torch.arange(4), 4) == pytest.approx((1.0, 4.0))


def test_the_first_codebook_quantises_latents_far_better_than_their_mean() -> None:
    model = MultiScaleVQVAE(TokenizerConfig(4, [1, 2], 32, 2, 4, [1, 1], 1, 1, 2, 1))
    corners = torch.tensor([-2.0, 2.0])
    latents = corners[torch.randint(2, (200, 2, 2, 2), generator=_generator())]
    latents = latents + 0.05 * torch.randn(latents.shape, generator=_generator(1))
    vq.init_codebook(model, latents, _generator(2))
    _, fhat = model.quantize.quantize(latents)
    assert (fhat - latents).square().mean() < 0.1 * latents.var()
    torch.testing.assert_close(model.quantize.phi(latents, 1), latents)  # phi starts without effect


# --- losses ----------------------------------------------------------------------------------------------------------


def _stub(scales: list[int], codes: list[float], latent: Tensor) -> Any:
    """A model whose latent is given and whose decoder is the identity, with a one-channel codebook and no phi."""
    quantizer = MultiScaleQuantizer(TokenizerConfig(scales=scales, vocab_size=len(codes), z_channels=1, phi_ratio=0.0))
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor(codes)[:, None])
    return SimpleNamespace(
        quantize=quantizer, encode_latent=lambda img: latent, decode=lambda fhat, clamp: fhat.expand(-1, 3, -1, -1)
    )


def test_the_loss_of_one_scale_by_hand() -> None:
    model = _stub([1], [0.0, 3.0], torch.full((1, 1, 1, 1), 2.0))
    config = TokenizerTrainingConfig(commitment_weight=0.25, l1_weight=0.1)
    losses, rows, index = vq.quantized_loss(model, torch.full((1, 3, 1, 1), 2.5), config)
    assert rows.tolist() == [[2.0]] and index.tolist() == [1]
    # |3 - 2|^2 (0.25 + 1) and, for the picture, |3 - 2.5|^2 + 0.1 |3 - 2.5|
    assert losses.commitment.item() == pytest.approx(1.25)
    assert losses.reconstruction.item() == pytest.approx(0.3)
    assert losses.loss.item() == pytest.approx(1.55)


def test_the_loss_of_two_scales_is_the_mean_over_them() -> None:
    latent = torch.tensor([[1.0, 1.0], [3.0, 3.0]])[None, None]
    model = _stub([1, 2], [0.0, 2.0, 1.0, -1.0], latent)
    losses, rows, index = vq.quantized_loss(model, latent.expand(-1, 3, -1, -1), TokenizerTrainingConfig())
    # The first scale takes the mean 2 and leaves -1 -1 / 1 1, which the second one takes exactly.
    assert index.tolist() == [1, 3, 3, 2, 2] and rows.flatten().tolist() == pytest.approx([2, -1, -1, 1, 1])
    assert losses.commitment.item() == pytest.approx(1.25 / 2)
    assert losses.reconstruction.item() == pytest.approx(0.0, abs=1e-9)


def test_the_encoder_gets_the_gradient_of_the_picture_at_the_quantised_latent() -> None:
    model = MultiScaleVQVAE(SMALL)
    vq.initialise(model)
    img = torch.rand(2, 3, 4, 4) * 2 - 1
    config = TokenizerTrainingConfig(commitment_weight=0.0)
    losses, _, _ = vq.quantized_loss(model, img, config)
    losses.loss.backward()
    straight_through = [p.grad.clone() for p in model.encoder.parameters() if p.grad is not None]
    model.zero_grad()
    z = model.encode_latent(img)
    fhat = model.quantize.quantize(z)[1].detach().requires_grad_()
    vq.reconstruction_loss(model.decode(fhat, clamp=False), img, config.l1_weight).backward()
    z.backward(fhat.grad)
    expected = [p.grad for p in model.encoder.parameters()]
    assert len(straight_through) == len(expected) and any(g.abs().max() > 0 for g in expected)
    for a, b in zip(straight_through, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_the_autoencoder_loss_adds_the_size_of_the_latent() -> None:
    img = torch.full((1, 3, 1, 1), 1.5)
    losses = vq.autoencoder_loss(
        _stub([1], [0.0], torch.full((1, 1, 1, 1), 2.0)), img, TokenizerTrainingConfig(l1_weight=0.1)
    )
    assert losses.reconstruction.item() == pytest.approx(0.25 + 0.05)
    assert losses.loss.item() == pytest.approx(0.3 + 1e-4 * 4)


def test_psnr_has_peak_two_and_is_averaged_over_pictures() -> None:
    a = torch.zeros(2, 3, 2, 2)
    b = torch.stack([torch.full((3, 2, 2), 2.0), torch.full((3, 2, 2), 0.2)])
    # mean squared errors 4 and 0.04: 0 and 20 dB
    assert vq.picture_psnr(a, b).item() == pytest.approx(10.0, abs=1e-4)


def test_initial_weights_are_orthogonal_with_small_residual_branches() -> None:
    model = MultiScaleVQVAE(SMALL)
    vq.initialise(model)
    w = model.encoder.conv_in.weight.detach().flatten(1)
    torch.testing.assert_close(w @ w.T, torch.eye(4), atol=1e-5, rtol=0)
    last: list[nn.Conv2d] = [m.conv2 for m in model.modules() if isinstance(m, ResnetBlock)]
    last += [m.proj_out for m in model.modules() if isinstance(m, AttnBlock)]
    for conv in last:
        w = conv.weight.detach().flatten(1)
        torch.testing.assert_close(w @ w.T, 0.01 * torch.eye(4), atol=1e-5, rtol=0)
