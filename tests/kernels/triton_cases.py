"""Checks of the Triton kernels in Triton's interpreter. A process of its own: TRITON_INTERPRET is read at import.

`python triton_cases.py` runs every function named check_*; tests/kernels/test_triton_interpreter.py calls it.
"""

import sys
import time
import traceback

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import (
    BlockMask,
    autotune,
    mask_tables,
    reference,
    selftest,
    triton_attention,
    triton_backward,
    triton_decode,
)
from kernels.benchmark import Case
from kernels.selftest import Problem, results
from kernels.triton_forward import forward
from kernels.triton_tiles import KINDS, Options, Tile

NAN = float("nan")


def relative(found, exact):
    rel = [float((f.double() - e).norm() / e.norm().clamp_min(1e-30)) for f, e in zip(found, exact, strict=True)]
    return [r if r == r else float("inf") for r in rel]


def exact_results(p, dtype, gradients=True):
    rounded = Problem(*(t.to(dtype).double() for t in (p.q, p.k, p.v, p.dout)), p.mask)
    return results(reference.attention, rounded, torch.float64, gradients)


def with_options(**settings_):
    options = Options(poison=True, **settings_)  # outputs are NaN until written
    return lambda *x: triton_attention.attention(*x, options)


def check_float32_is_within_1e_6_and_float16_within_1e_3_with_all_gradients():
    p = selftest.problem(32, decode=False, device="cpu", seed=1)
    for dtype, limit in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
        for pack in (True, False):
            got = results(with_options(pack=pack), p, dtype, True)
            assert len(got) == 4 and max(relative(got, exact_results(p, dtype))) < limit


def check_every_switch_gives_the_same_within_its_stated_error():
    p = selftest.problem(16, decode=False, device="cpu", seed=2)
    exact = exact_results(p, torch.float32, False)
    for threshold in (0.0, 8.0):
        assert relative(results(with_options(rescale_threshold=threshold), p, torch.float32, False), exact)[0] < 1e-6
        poly = with_options(rescale_threshold=threshold, poly_exp2=True)
        assert relative(results(poly, p, torch.float32, False), exact)[0] < 1e-4


def check_decode_with_any_number_of_splits_is_the_same():
    p = selftest.problem(64, decode=True, device="cpu", seed=3)
    exact = exact_results(p, torch.float32, False)
    keys = mask_tables.key_tables(p.mask, 16)
    x = [t.float() for t in (p.q, p.k, p.v)]
    for splits in (1, 2, 3, 8):
        out = triton_decode.decode(*x, keys, 0.125, Tile(16, 16, 4, 1), splits, Options(poison=True))
        assert relative([out], exact)[0] < 1e-6


def check_split_rows_of_the_backward_add_up():
    p = selftest.problem(32, decode=False, device="cpu", seed=4)
    q, k, v, dout = (t.float() for t in (p.q, p.k, p.v, p.dout))
    exact = exact_results(p, torch.float32)[1:]
    tile, scale, options = Tile(32, 16, 4, 1), 32**-0.5, Options(poison=True)
    keys, rows = mask_tables.key_tables(p.mask, 16), mask_tables.row_tables(p.mask, 16)
    out, lse = forward(q, k, v, keys, scale, tile, options)
    runs = []
    for splits in (1, 3, 3):
        runs.append(triton_backward.backward(q, k, v, out, lse, dout, keys, rows, scale, tile, tile, splits, options))
        assert max(relative(runs[-1], exact)) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(*runs[1:], strict=True))


def check_what_padding_holds_is_never_read():
    p = selftest.problem(16, decode=False, device="cpu", seed=5)
    clean = results(with_options(), p, torch.float32, True)
    dead_keys, dead_rows = ~p.mask.k_valid, ~p.mask.alive()
    q, k, v, dout = (t.clone() for t in (p.q, p.k, p.v, p.dout))
    k[dead_keys], v[dead_keys], q[dead_rows], dout[dead_rows] = NAN, NAN, NAN, NAN
    dirty = results(with_options(), Problem(q, k, v, dout, p.mask), torch.float32, True)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
    assert (clean[0][dead_rows] == 0).all() and (clean[1][dead_rows] == 0).all()
    assert (clean[2][dead_keys] == 0).all() and (clean[3][dead_keys] == 0).all()


def check_rising_and_huge_logits_stay_right():
    # The first feature of q is 1 and that of key j is its logit: steps below and above the threshold, then large.
    mask = BlockMask.from_lengths([130])
    j = torch.arange(130.0)
    for logits in (j * 0.3, j * 5, torch.where(j % 40 == 39, 1e4, -1e4), j * 0 + 3e3):
        q, k = torch.zeros(1, 130, 1, 16), torch.zeros(1, 130, 1, 16)
        q[..., 0], k[0, :, 0, 0] = 1, logits
        v = torch.randn(1, 130, 1, 16, generator=torch.Generator().manual_seed(0))
        exact = reference.attention(q.double(), k.double(), v.double(), mask, 1.0)
        for threshold in (0.0, 8.0):
            out = with_options(rescale_threshold=threshold)(q, k, v, mask, 1.0)
            # float32 holds logits of 3000 to 1e-4 only.
            assert relative([out], [exact])[0] < (1e-6 if logits.abs().max() < 100 else 1e-3)


def check_strided_inputs_and_compilation_change_nothing():
    g, mask = torch.Generator().manual_seed(6), BlockMask.from_lengths([9, 21, 5])
    p = Problem(*(torch.randn(1, 35, h, 16, generator=g, dtype=torch.float64) for h in (4, 2, 2, 4)), mask)
    q, k, v = (t.float() for t in (p.q, p.k, p.v))
    expected = with_options()(q, k, v, p.mask, 0.25)
    strided = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    assert torch.equal(with_options()(*strided, p.mask, 0.25), expected)
    run = torch.compile(
        lambda a, b, c: kernels.attention(a, b, c, p.mask, scale=0.25, backend="triton"),
        backend="aot_eager",
        fullgraph=True,
    )
    kernels.attention(*(t.clone().requires_grad_() for t in (q, k, v)), p.mask, backend="triton")  # prepares the mask
    a, b, c = (t.clone().requires_grad_() for t in (q, k, v))
    out = run(a, b, c)
    out.backward(p.dout.float())
    assert torch.equal(out, expected)
    x = [t.clone().requires_grad_() for t in (q, k, v)]
    with_options()(*x, p.mask, 0.25).backward(p.dout.float())
    assert all(torch.equal(s.grad, t.grad) for s, t in zip((a, b, c), x, strict=True))


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 18), min_size=1, max_size=4).filter(any),
    cached=st.sampled_from([0, 1, 15, 16, 17]),
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]),
    keep=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def check_random_layouts(lengths, cached, heads, keep, seed):
    g = torch.Generator().manual_seed(seed)
    prefix = torch.full((1, cached), 3, dtype=torch.int32)
    mask = BlockMask.suffix(prefix, torch.rand(2, cached, generator=g) < keep, lengths)
    mask = BlockMask(mask.q_block, mask.k_block, mask.q_valid, torch.rand(2, mask.shape[1], generator=g) <= keep)
    (Lq, Lk), (H, G) = mask.shape, heads
    shape = ((Lq, H), (Lk, G), (Lk, G), (Lq, H))
    p = Problem(*(torch.randn(2, n, h, 16, generator=g, dtype=torch.float64) for n, h in shape), mask)
    assert max(relative(results(with_options(), p, torch.float32, True), exact_results(p, torch.float32))) < 1e-6


def check_autotune_times_every_kernel_with_every_tile_that_fits():
    mask = BlockMask.from_lengths([20, 12])
    tiles = [Tile(16, 16, 4, 1), Tile(32, 16, 4, 1)]
    case, table = Case("x", mask, 1, 4, 2, 16, True), dict.fromkeys(KINDS, tiles[0])
    for kind in KINDS:
        times = autotune.time_tiles(autotune.runner(case, kind, table, "cpu", torch.float16), tiles, "cpu", 1)
        assert list(times) == tiles and min(times.values()) > 0


def check_bfloat16_is_refused_because_the_interpreter_multiplies_its_bits():
    q = torch.zeros(1, 4, 1, 16, dtype=torch.bfloat16)
    try:
        kernels.attention(q, q, q, BlockMask.from_lengths([4]), backend="triton")
    except ValueError as e:
        assert "bfloat16 is not supported, use float16, float32" in str(e)
    else:
        raise AssertionError("bfloat16 was not refused")


def main() -> int:
    assert triton_attention.INTERPRETED, "start with TRITON_INTERPRET=1"
    wanted, failed = sys.argv[1:], 0
    for name, function in list(globals().items()):
        if name.startswith("check_") and (not wanted or name in wanted):
            start = time.process_time()
            try:
                function()
                print(f"{time.process_time() - start:6.1f} s\nPASSED {name}", flush=True)
            except Exception:  # noqa: BLE001 - reported, and the exit code says so
                traceback.print_exc()
                print(f"FAILED {name}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
