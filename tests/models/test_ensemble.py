"""Stacked layers: the oneDNN products give what baddbmm in double precision gives, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.models import linear
from rl.models.ensemble import EnsembleLinear

size = st.integers(1, 40)


@pytest.mark.skipif(not linear.AVAILABLE, reason="this torch has no oneDNN linear")
@settings(max_examples=40, deadline=None)
@given(N=st.integers(1, 3), B=size, inputs=size, outputs=size, shared=st.booleans(), frozen=st.booleans())
def test_output_and_every_gradient_equal_those_of_double_precision(
    N: int, B: int, inputs: int, outputs: int, shared: bool, frozen: bool
) -> None:
    torch.manual_seed(B)
    layer = EnsembleLinear(N, inputs, outputs)
    x = torch.randn(*(() if shared else (N,)), B, inputs, requires_grad=True)
    weight, bias, y = (t.detach().double().requires_grad_() for t in (layer.weight, layer.bias, x))
    found, expected = layer(x, frozen), torch.baddbmm(bias, y.expand(N, B, inputs), weight)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad.float(), rtol=1e-4, atol=1e-4)
    for mine, theirs in [(layer.weight, weight), (layer.bias, bias)]:
        if frozen:
            assert mine.grad is None
        else:
            assert mine.grad is not None and theirs.grad is not None
            # The fused optimizer steps through memory: a gradient has to lie there as its parameter does.
            assert mine.grad.is_contiguous()
            torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-4)


def test_autocast_and_double_precision_take_the_batched_product() -> None:
    layer, x = EnsembleLinear(2, 4, 3), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    double = layer.double()
    expected = torch.stack([x.double() @ double.weight[n] + double.bias[n] for n in range(2)])
    torch.testing.assert_close(double(x.double()), expected)
