"""Block masks and attention backends against brute force."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import BlockMask

BACKENDS = kernels.available_backends()
TRAINABLE = kernels.available_backends(training=True)


def brute_force(q, k, v, mask, scale):
    """Loops over batch, head and query in plain Python."""
    B, Lq, H, _ = q.shape
    Lk, G = k.shape[1], k.shape[2]
    out = torch.zeros_like(q)

    def row(t, b):
        return t[b if t.shape[0] > 1 else 0]

    for b in range(B):
        for i in range(Lq):
            if not row(mask.q_valid, b)[i]:
                continue
            seen = [
                j for j in range(Lk) if row(mask.k_block, b)[j] <= row(mask.q_block, b)[i] and row(mask.k_valid, b)[j]
            ]
            for head in range(H):
                g = head // (H // G)
                scores = [math.exp(float(q[b, i, head] @ k[b, j, g]) * scale) for j in seen]
                for s, j in zip(scores, seen, strict=True):
                    out[b, i, head] += s / sum(scores) * v[b, j, g]
    return out


def block_ids(draw, length):
    steps = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    return torch.tensor(steps).cumsum(0).to(torch.int32)[None]


@st.composite
def problems(draw):
    B, Lq, Lk = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    G, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 2)]))
    bits = lambda n: torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))  # noqa: E731
    mask = BlockMask(block_ids(draw, Lq), block_ids(draw, Lk), bits(B * Lq).view(B, Lq), bits(B * Lk).view(B, Lk))
    g = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shape = lambda n, h: torch.randn(B, n, h, 4, generator=g, dtype=torch.float64)  # noqa: E731
    return shape(Lq, G * group), shape(Lk, G), shape(Lk, G), mask


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_backend_equals_brute_force_and_gives_zero_rows_where_nothing_is_seen(backend, problem):
    q, k, v, mask = problem
    out = kernels.attention(q, k, v, mask, scale=0.7, backend=backend)
    torch.testing.assert_close(out, brute_force(q, k, v, mask, 0.7), atol=1e-12, rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(problem=problems())
def test_visible_is_the_definition(problem):
    mask = problem[3]
    seen = mask.visible()
    for b in range(seen.shape[0]):
        for i in range(seen.shape[1]):
            for j in range(seen.shape[2]):
                expected = mask.k_block[0, j] <= mask.q_block[0, i] and mask.k_valid[b, j] and mask.q_valid[b, i]
                assert bool(seen[b, i, j]) == bool(expected)


@pytest.mark.parametrize("backend", TRAINABLE)
def test_gradients_pass_gradcheck_and_stay_finite_in_empty_rows(backend):
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, h, 4, generator=g, dtype=torch.float64, requires_grad=True)
        for n, h in [(3, 4), (4, 2), (4, 2)]
    )
    mask = BlockMask(
        torch.tensor([[0, 1, 1]], dtype=torch.int32),
        torch.tensor([[0, 0, 1, 2]], dtype=torch.int32),
        torch.tensor([[True, True, False], [True, True, True]]),
        torch.tensor([[True, False, True, True], [False, False, True, True]]),  # row 0 of sample 1 sees nothing
    )
    assert torch.autograd.gradcheck(lambda *x: kernels.attention(*x, mask, backend=backend), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_in_lower_precision(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 16, generator=g) for n, h in [(33, 4), (40, 1), (40, 1)])
    block = torch.arange(40, dtype=torch.int32)[None] // 7
    mask = BlockMask(block[:, 7:], block, torch.ones(2, 33, dtype=torch.bool), torch.rand(2, 40, generator=g) < 0.8)
    exact = kernels.attention(q.double(), k.double(), v.double(), mask, backend="reference")
    for backend in BACKENDS:
        out = kernels.attention(q.to(dtype), k.to(dtype), v.to(dtype), mask, backend=backend)
        assert out.dtype == dtype
        error = (out.double() - exact).norm() / exact.norm()
        assert error < (1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("backend", TRAINABLE)
def test_compiled_attention_with_a_prepared_mask_is_one_graph(backend):
    mask = BlockMask.next_scale(5, (1, 2), (1, 3))
    q = torch.randn(1, 14, 4, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    k = q.detach()[:, :, :1]
    expected = kernels.attention(q, k, k, mask, backend=backend)
    run = torch.compile(
        lambda q: kernels.attention(q, k, k, mask, backend=backend), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(run(q), expected)


@pytest.mark.parametrize("backend", TRAINABLE)
def test_sdpa_pieces_and_reference_agree_on_a_layout_of_many_blocks(backend):
    g = torch.Generator().manual_seed(0)
    whole = BlockMask.next_scale(140, (1, 2, 12), (1, 30))
    mask = BlockMask.square(whole.q_block, torch.rand(2, 320, generator=g) < 0.8)
    q, k, v = (torch.randn(2, 320, h, 8, generator=g, dtype=torch.float64) for h in (4, 2, 2))
    dense = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / 8**0.5
    weights = dense.masked_fill(~mask.visible()[:, None], -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = torch.einsum("bhij,bjhd->bihd", weights, v.repeat_interleave(2, 2))
    torch.testing.assert_close(kernels.attention(q, k, v, mask, backend=backend), expected)
