"""The diffusion transformer: what sees what, what repeating states may not change, and that it fits a distribution."""

import pytest
import torch
from torch import nn

from rl.models.ddpm import Diffusion
from rl.models.dit import DiffusionTransformer, repeat, sinusoids


def awake(**changes: object) -> DiffusionTransformer:
    """A network whose zero-initialised gates and head are random, so that everything has an effect."""
    model = DiffusionTransformer(5, 6, 10, width=32, heads=2, num_blocks=2, **changes)  # type: ignore[arg-type]
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.2)
    return model


def test_a_new_network_predicts_zero_whatever_it_sees() -> None:
    model = DiffusionTransformer(5, 6, 10, width=32, heads=2, num_blocks=4)
    out = model(model.encode(torch.randn(3, 5)), torch.randn(3, 6), torch.tensor([4]))
    assert (out == 0).all()


@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_every_action_dim_depends_on_state_step_and_every_other_dim(tokens: int) -> None:
    model = awake(action_tokens=tokens)
    features = torch.randn(1, 5, requires_grad=True)
    noisy = torch.randn(1, 6, requires_grad=True)
    out = model(model.encode(features), noisy, torch.tensor([4]))
    for i in range(6):
        to_features, to_noisy = torch.autograd.grad(out[0, i], (features, noisy), retain_graph=True)
        assert (to_features != 0).all() and (to_noisy != 0).all()
    other = model(model.encode(features), noisy, torch.tensor([5]))
    assert (out != other).all()


def test_states_are_encoded_without_looking_at_actions_and_repeated_ones_serve_many() -> None:
    model = awake(action_tokens=2)
    features, noisy = torch.randn(3, 5), torch.randn(12, 6)
    t = torch.randint(10, (12,))
    many = model(repeat(model.encode(features), 4), noisy, t)
    single = torch.cat(
        [model(model.encode(features[i // 4 : i // 4 + 1]), noisy[i : i + 1], t[i : i + 1]) for i in range(12)]
    )
    torch.testing.assert_close(many, single, atol=1e-5, rtol=1e-4)
    shared = model(repeat(model.encode(features), 4), noisy, torch.tensor([7]))
    torch.testing.assert_close(shared, model(repeat(model.encode(features), 4), noisy, torch.full((12,), 7)))


def test_step_embeddings_differ_for_every_step() -> None:
    waves = sinusoids(10, 32)
    assert torch.cdist(waves, waves).fill_diagonal_(1).min() > 0.1


def test_sizes_that_do_not_divide_are_refused_by_key() -> None:
    with pytest.raises(ValueError, match=r"network\.width 32 is not a multiple of network\.num_heads 3"):
        DiffusionTransformer(5, 6, 10, width=32, heads=3)
    with pytest.raises(ValueError, match=r"network\.action_tokens 4 do not divide the 6 action dims"):
        DiffusionTransformer(5, 6, 10, width=32, action_tokens=4)


@pytest.mark.slow
def test_it_fits_two_modes_that_depend_on_the_state() -> None:
    """Actions are +0.6 or -0.6 (both dims alike) times the sign of the state: samples are near one of the two."""
    model, diffusion = DiffusionTransformer(1, 2, 10, width=32, heads=2, num_blocks=2), Diffusion(10)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(600):
        sign = torch.randint(2, (128, 1)) * 2.0 - 1
        mode = torch.randint(2, (128, 1)) * 2.0 - 1
        clean = torch.cat([0.6 * mode, 0.6 * mode * sign], 1)
        t, noise = torch.randint(10, (128,)), torch.randn(128, 2)
        loss = (model(model.encode(sign), diffusion.add_noise(clean, t, noise), t) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sign = torch.tensor([1.0, -1.0]).repeat(200)[:, None]
    with torch.no_grad():
        context = model.encode(sign)
        out = diffusion.denoise(lambda x, t: model(context, x, torch.tensor([t])), torch.randn(10, 400, 2))
    assert (out.abs() - 0.6).abs().mean() < 0.1
    assert ((out[:, 0] * out[:, 1]).sign() == sign[:, 0]).float().mean() > 0.95
    assert 0.3 < (out[:, 0] > 0).float().mean() < 0.7
