"""On a CUDA device: `pytest -m gpu tests/kernels`. Everything in bfloat16, and a hunt for races."""

import pytest
import torch

import kernels
from kernels import BlockMask, dispatch, selftest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("head_dim", selftest.HEAD_SIZES)
@pytest.mark.parametrize("use", ["training", "decode"])
@pytest.mark.parametrize("backend", dispatch.BACKENDS)
def test_bfloat16_is_right(backend, use, head_dim):
    line, ok = selftest.check(backend, torch.bfloat16, head_dim, use, "cuda")
    assert ok, line


@pytest.mark.parametrize("backend", ["triton", "fa4"])
def test_two_thousand_repeats_give_the_same_gradients(backend):
    kind = dispatch.kind_of("cuda", torch.bfloat16, 256, training=True)
    if why := dispatch.refusal(backend, kind):
        pytest.skip(why)
    g = torch.Generator().manual_seed(0)
    mask = BlockMask.next_scale(300, (1, 2, 3, 8), (1, 50), device="cuda")
    L = mask.shape[0]
    q, k, v = (torch.randn(2, L, h, 256, generator=g).cuda().bfloat16().requires_grad_() for h in (8, 1, 1))
    first = None
    for _ in range(2000):
        q.grad = k.grad = v.grad = None
        kernels.attention(q, k, v, mask, backend=backend).float().square().sum().backward()
        now = [t.grad.clone() for t in (q, k, v)]
        first = first or now
        for a, b in zip(now, first, strict=True):
            if backend == "triton":
                assert torch.equal(a, b)  # no atomics: the same bits
            else:
                torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()))


def test_two_thousand_decode_calls_give_the_same_output():
    g = torch.Generator().manual_seed(0)
    prefix = BlockMask.from_lengths([2175], torch.rand(1, 2175, generator=g).cuda() < 0.9, device="cuda")
    mask = BlockMask.suffix(prefix.k_block, prefix.k_valid, (1, 50))
    q, k, v = (torch.randn(1, n, h, 256, generator=g).cuda().bfloat16() for n, h in ((51, 8), (2226, 1), (2226, 1)))
    first = kernels.attention(q, k, v, mask, backend="triton")
    for _ in range(2000):
        assert torch.equal(kernels.attention(q, k, v, mask, backend="triton"), first)
