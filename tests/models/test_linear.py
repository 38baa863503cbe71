"""The oneDNN linear layer gives what nn.Linear gives, forward and backward, eager and compiled."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rl.models import linear
from rl.models.linear import Linear


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products go through oneDNN, too."""
    monkeypatch.setattr(linear, "SMALL", 0)


def both(N: int, inputs: int, outputs: int) -> tuple[Linear, nn.Linear, torch.Tensor]:
    torch.manual_seed(N)
    ours, plain = Linear(inputs, outputs), nn.Linear(inputs, outputs)
    plain.load_state_dict(ours.state_dict())
    return ours, plain, torch.randn(N, inputs)


@pytest.mark.skipif(not linear.AVAILABLE, reason="this torch has no oneDNN linear")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(N=st.integers(1, 70), inputs=st.integers(1, 40), outputs=st.integers(1, 40))
def test_output_and_every_gradient_equal_those_of_nn_linear(N: int, inputs: int, outputs: int) -> None:
    ours, plain, x = both(N, inputs, outputs)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, z = ours(a), plain(b)
    torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    z.square().sum().backward()
    for found, expected in [(a.grad, b.grad), (ours.weight.grad, plain.weight.grad), (ours.bias.grad, plain.bias.grad)]:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ours.weight.grad is not None and ours.weight.grad.is_contiguous()


def test_double_precision_autocast_and_empty_batches_take_the_usual_path() -> None:
    ours, plain, x = both(5, 4, 3)
    assert torch.equal(ours(x[:0]), plain(x[:0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype is torch.bfloat16
    assert torch.equal(ours.double()(x.double()), plain.double()(x.double()))


def test_it_can_be_traced() -> None:
    ours, plain, x = both(5, 4, 3)
    torch.testing.assert_close(torch.jit.trace(ours, x)(x), plain(x))


@pytest.mark.skipif(not linear.AVAILABLE, reason="this torch has no oneDNN linear")
def test_only_products_that_are_worth_it_leave_the_usual_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    taken: list[int] = []
    monkeypatch.setattr(linear, "_linear", lambda x, *rest: taken.append(x.shape[0]) or x.new_zeros(x.shape[0], 64))
    layer = Linear(64, 64)
    with torch.no_grad():
        for rows in (256, 511, 512, 1024):  # 512 x 64 x 64 are 2^21 multiplications
            layer(torch.randn(rows, 64))
    assert taken == [512, 1024]
