"""The multi-scale quantiser against an oracle in float64 that knows only the definition."""

import numpy as np
import pytest
import torch

from f1_vla.config import TokenizerConfig
from f1_vla.tokenizer import MultiScaleQuantizer, MultiScaleVQVAE, phi_index

CONFIG = TokenizerConfig(
    image_size=16, scales=[1, 2, 4], vocab_size=11, z_channels=3, channels=4, channel_multipliers=[1, 1, 1],
    norm_groups=2, num_phi=2,
)  # fmt: skip


@pytest.fixture
def quantizer() -> MultiScaleQuantizer:
    return MultiScaleQuantizer(CONFIG).requires_grad_(False)


# --- oracle ----------------------------------------------------------------------------------------------------------


def _cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def _bicubic_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): half-pixel centres, borders repeated."""
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        centre = (i + 0.5) * n_in / n_out - 0.5
        low = int(np.floor(centre))
        for j in range(low - 1, low + 3):
            matrix[i, min(max(j, 0), n_in - 1)] += _cubic(centre - j)
    return matrix


def _convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(C, P, P) by (C, C, 3, 3) with a border of zeros."""
    p = x.shape[1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    shifted = np.stack([padded[:, i : i + p, j : j + p] for i in range(3) for j in range(3)], 1)
    return np.einsum("ock,ckhw->ohw", weight.reshape(*weight.shape[:2], 9), shifted) + bias[:, None, None]


def _oracle(quantizer: MultiScaleQuantizer, latent: np.ndarray) -> tuple[list[list[int]], np.ndarray, list[np.ndarray]]:
    """Ids of every scale, the accumulated latent, and the next-scale inputs of scales 2.., of one latent (C, P, P)."""
    codes = quantizer.embedding.weight.double().numpy()
    P, rest, fhat = quantizer.side, latent.astype(np.float64), np.zeros_like(latent, dtype=np.float64)
    all_ids, inputs = [], []
    for k, p in enumerate(quantizer.scales):
        block = P // p
        pooled = rest.reshape(-1, p, block, p, block).mean((2, 4))
        ids = [int(np.argmin([np.sum((pooled[:, y, x] - c) ** 2) for c in codes])) for y in range(p) for x in range(p)]
        small = codes[ids].T.reshape(-1, p, p)
        m = _bicubic_matrix(p, P) if p < P else np.eye(P)
        large = np.einsum("ij,cjk,lk->cil", m, small, m)
        conv = quantizer.quant_resi.qresi_ls[quantizer.phi_of_scale[k]]
        mixed = _convolve(large, conv.weight.double().numpy(), conv.bias.double().numpy())
        g = 0.5 * large + 0.5 * mixed
        fhat, rest = fhat + g, rest - g
        all_ids.append(ids)
        if k + 1 < len(quantizer.scales):
            q = quantizer.scales[k + 1]
            inputs.append(fhat.reshape(-1, q, P // q, q, P // q).mean((2, 4)).reshape(-1, q * q).T)
    return all_ids, fhat, inputs


# --- tests -----------------------------------------------------------------------------------------------------------


def test_ids_and_accumulated_latent_equal_the_oracle(quantizer: MultiScaleQuantizer) -> None:
    latent = torch.randn(3, 3, 4, 4)
    ids, fhat = quantizer.quantize(latent)
    for n in range(3):
        expected_ids, expected_fhat, expected_inputs = _oracle(quantizer, latent[n].numpy())
        assert [i[n].tolist() for i in ids] == expected_ids
        np.testing.assert_allclose(fhat[n].numpy(), expected_fhat, atol=1e-5)
        var_input = quantizer.ids_to_var_input(torch.cat(ids, 1)[n : n + 1])[0]
        np.testing.assert_allclose(var_input.numpy(), np.concatenate(expected_inputs), atol=1e-5)


def test_ids_alone_rebuild_the_accumulated_latent(quantizer: MultiScaleQuantizer) -> None:
    ids, fhat = quantizer.quantize(torch.randn(4, 3, 4, 4))
    torch.testing.assert_close(quantizer.ids_to_fhat(torch.cat(ids, 1)), fhat, atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(quantizer.split(torch.cat(ids, 1)), ids, strict=True))


def test_the_lowest_code_wins_a_tie(quantizer: MultiScaleQuantizer) -> None:
    quantizer.embedding.weight.zero_()
    quantizer.embedding.weight[3:5, 0] = 1.0
    assert quantizer.nearest(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])).tolist() == [3, 0]


def test_rows_of_one_picture_do_not_depend_on_the_others(quantizer: MultiScaleQuantizer) -> None:
    latent = torch.randn(5, 3, 4, 4)
    together = torch.cat(quantizer.quantize(latent)[0], 1)
    alone = torch.cat([torch.cat(quantizer.quantize(x[None])[0], 1) for x in latent])
    assert torch.equal(together, alone)


def test_ten_scales_share_four_convolutions_as_published() -> None:
    assert [phi_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert phi_index(0, 1, 4) == 0


def test_a_picture_has_one_token_for_every_cell_of_every_scale_and_comes_back_at_its_size() -> None:
    model = MultiScaleVQVAE(CONFIG).eval()
    img = torch.rand(2, 3, 16, 16) * 2 - 1
    ids = model.img_to_ids(img)
    assert ids.shape == (2, 1 + 4 + 16) == (2, CONFIG.num_tokens) and ids.dtype == torch.int64
    assert int(ids.min()) >= 0 and int(ids.max()) < 11
    fhat = model.ids_to_fhat(ids)
    assert model.encode_latent(img).shape == fhat.shape == (2, 3, 4, 4)
    free, clamped = model.decode(30 * fhat, clamp=False), model.decode(30 * fhat)
    torch.testing.assert_close(clamped, free.clamp(-1, 1))
    assert clamped.shape == img.shape


def test_a_picture_of_another_size_is_refused_with_the_key_to_set() -> None:
    with pytest.raises(ValueError, match=r"expects 16x16 px pictures, got \(8, 8\); set environment\.wm_size=16"):
        MultiScaleVQVAE(CONFIG).encode_latent(torch.zeros(1, 3, 8, 8))
