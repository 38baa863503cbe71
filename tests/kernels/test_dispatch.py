"""Which backend takes which calls, and what is refused."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import BlockMask, dispatch, fa4, flex, mask_tables, pieces, pinned, sdpa

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_is_pinned(monkeypatch):
    monkeypatch.setattr(pinned, "choice", lambda kind: None)


def kind(capability=None, dtype=torch.bfloat16, head_dim=256, training=True, decode=False):
    device = CPU if capability is None else torch.device("cuda")
    return dispatch.Kind(device, capability, dtype, head_dim, training, decode)


@pytest.mark.parametrize(
    ("call", "backend"),
    [
        (kind(dtype=torch.float32), "sdpa"),
        (kind(dtype=torch.float64), "sdpa"),
        (kind(dtype=torch.bfloat16), "matmul"),
        (kind(dtype=torch.float32, training=False, decode=True), "matmul"),
        (kind(90), "sdpa"),
        (kind(89, training=False, decode=True), "sdpa"),
    ],
)
def test_auto_table(call, backend):
    assert dispatch.choose("auto", call).backend == backend


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (kind(90, dtype=torch.float32), "dtype float32, it takes bfloat16 or float16"),
        (kind(89), "architecture sm_89 has no backward"),
        (kind(89, training=False), "head size 256 does not fit the shared memory of sm_89"),
        (kind(75), "architecture sm_75, it needs sm_80"),
        (kind(90, head_dim=100), "head size 100, it takes multiples of 8"),
        (kind(), "needs a CUDA device, the tensors are on cpu"),
    ],
)
def test_fa4_says_which_architecture_dtype_or_size_is_missing(monkeypatch, call, reason):
    monkeypatch.setattr(fa4, "missing_packages", list)
    assert reason in dispatch.refusal("fa4", call)
    monkeypatch.setattr(fa4, "missing_packages", lambda: ["flash-attn-4"])
    assert dispatch.refusal("fa4", call).endswith("package flash-attn-4 is not installed")
    monkeypatch.setattr(fa4, "missing_packages", lambda: ["flash-attn-4", "quack-kernels"])
    assert dispatch.refusal("fa4", call).endswith("packages flash-attn-4, quack-kernels are not installed")


def test_flex_names_what_its_kernels_cannot_do_on_cuda():
    assert "float64" in dispatch.refusal("flex", kind(90, dtype=torch.float64))
    assert dispatch.refusal("flex", kind(90)) is None


def test_fa4_on_a_hopper_gpu_with_the_package_is_not_refused(monkeypatch):
    monkeypatch.setattr(fa4, "missing_packages", list)
    assert dispatch.refusal("fa4", kind(90)) is None


def test_decision_is_logged_once_with_its_reason_and_recorded(caplog):
    q = torch.zeros(1, 3, 1, 8)
    dispatch._decide.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        for _ in range(3):
            kernels.attention(q, q, q, BlockMask.from_lengths([3]))
    assert len(caplog.messages) == 1 and "matmul, backend=auto: on CPU" in caplog.messages[0]
    assert kernels.decisions()["decode, cpu, float32, head size 8, full"].backend == "matmul"


def test_decisions_can_be_kept_with_a_run(tmp_path):
    q = torch.zeros(1, 3, 1, 8)
    kernels.attention(q, q, q, BlockMask.from_lengths([3]), backend="sdpa")
    kernels.record_decisions(tmp_path / "attention.json")
    kept = json.loads((tmp_path / "attention.json").read_text())
    assert kept["decode, cpu, float32, head size 8, full"] == {"backend": "sdpa", "reason": "asked for"}


def test_the_environment_overrides_the_configuration(monkeypatch):
    monkeypatch.setenv(dispatch.OVERRIDE, "sdpa")
    assert kernels.choose_backend("reference", "cpu", torch.float32, 16) == "sdpa"
    q = torch.zeros(1, 3, 1, 16)
    kernels.attention(q, q, q, BlockMask.from_lengths([3]), backend="reference")
    assert kernels.decisions()["decode, cpu, float32, head size 16, full"].backend == "sdpa"
    monkeypatch.setenv(dispatch.OVERRIDE, "fast")
    with pytest.raises(ValueError, match="backend='fast' is unknown; use auto, reference"):
        kernels.choose_backend("auto", "cpu", torch.float32, 16)


def test_every_use_is_decided_and_logged_when_a_model_is_built(caplog):
    dispatch._decide.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        assert kernels.choose_backend("auto", "cpu", torch.float32, 48) == "auto"
    assert [m.split(":")[0] for m in caplog.messages] == [
        f"attention ({use}, cpu, float32, head size 48, blocks)" for use in ("inference", "decode", "training")
    ]
    chosen = {k: c.backend for k, c in kernels.decisions().items() if k.endswith("size 48, blocks")}
    assert list(chosen.values()) == ["sdpa", "matmul", "sdpa"]


def test_names_are_checked_when_a_model_is_built(caplog):
    with pytest.raises(ValueError, match=r"'fa4' cannot run here .*use auto, reference, sdpa"):
        kernels.choose_backend("fa4", "cpu", torch.float32, 64)
    with pytest.raises(ValueError, match="unknown"):
        kernels.choose_backend("flash", "cpu", torch.float32, 64)
    assert kernels.choose_backend("flex", "cpu", torch.float32, 64) == "flex"
    assert "flex will refuse: FlexAttention has no backward on CPU" in caplog.text


def test_flex_refuses_gradients_on_cpu():
    q = torch.zeros(1, 3, 1, 16, requires_grad=True)
    with pytest.raises(ValueError, match="no backward on CPU; use auto, reference, sdpa"):
        kernels.attention(q, q, q, BlockMask.from_lengths([3]), backend="flex")


def test_shapes_that_do_not_fit_are_refused():
    mask = BlockMask.from_lengths([3])
    q = torch.randn(1, 3, 3, 4)
    for k, match in (
        (q[:, :, :2], "3 heads of q are not a multiple of the 2 heads"),
        (q[:, :2], r"mask is for \(Lq, Lk\) = \(3, 3\)"),
        (q[..., :2], "do not fit"),
        (q.double(), "must agree"),
        (q[0], "k must be"),
    ):
        with pytest.raises(ValueError, match=match):
            kernels.attention(q, k, k, mask)
    big = torch.zeros(1, 3, 1, 264)
    with pytest.raises(ValueError, match="D=264"):
        kernels.attention(big, big, big, mask)
    with pytest.raises(ValueError, match="int64; use bfloat16"):
        kernels.attention(q.long(), q.long(), q.long(), mask)
    with pytest.raises(ValueError, match="no heads or no features"):
        kernels.attention(q[..., :0], q[..., :0], q[..., :0], mask)
    with pytest.raises(ValueError, match=r"mask is Tensor; make a kernels\.BlockMask"):
        kernels.attention(q, q, q, mask.visible())
    with pytest.raises(ValueError, match="mask is on cpu, q on meta"):
        kernels.attention(q.to("meta"), q.to("meta"), q.to("meta"), mask)
    with pytest.raises(ValueError, match="scale is nan; give a finite number"):
        kernels.attention(q, q, q, mask, scale=float("nan"))
    with pytest.raises(ValueError, match=r"dtype torch\.int8 is not one of bfloat16"):
        kernels.choose_backend("auto", "cpu", torch.int8, 64)
    two = BlockMask.from_lengths([3], torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has batch 2, q has 1"):
        kernels.attention(q, q, q, two)


def test_sdpa_splits_by_blocks_and_says_so():
    mask = BlockMask.next_scale(300, (1, 2, 16), (1, 50))
    assert pieces.plan(mask, sdpa.MIN_ROWS) == (
        pieces.Piece(0, 300, 300, False),
        pieces.Piece(300, 561, 561, True),
        pieces.Piece(561, 612, 612, True),
    )
    assert sdpa.describe(mask) == "3 calls without a dense mask (small masks: 261 x 561, 51 x 612)"
    ragged = BlockMask.square(torch.tensor([[0, 0, 1], [0, 1, 1]]).int(), torch.ones(1, 3, dtype=torch.bool))
    assert sdpa.describe(ragged) == "one call with a dense mask of 3 x 3"


@pytest.mark.parametrize(
    "size", [fa4.tile_size(64), fa4.tile_size(64, 10), fa4.tile_size(160), fa4.tile_size(256), flex.TILE]
)
def test_tile_lists_are_the_mask(size):
    g = torch.Generator().manual_seed(0)
    whole = BlockMask.from_lengths([150, 20, 100, 61])
    valid = torch.rand(2, 331, generator=g) < 0.9
    valid[0, :200] = True
    valid[1, 64:128] = False
    mask = BlockMask(whole.q_block, whole.k_block, torch.ones(1, 331, dtype=torch.bool), valid)
    forward, backward = mask_tables.tile_lists(mask, 2, size)
    (m, n), seen = size, mask.visible()
    for b in range(2):
        for i in range(-(-331 // m)):
            part, full = (lists[1][b, 0, i, : lists[0][b, 0, i]].tolist() for lists in (forward[:2], forward[2:]))
            for j in range(-(-331 // n)):
                tile = seen[b, i * m : (i + 1) * m, j * n : (j + 1) * n]
                assert (j in full) == bool(tile.all() and tile.shape[1] == n)
                assert (j in part) == bool(tile.any() and j not in full)
                assert (i in backward[3][b, 0, j, : backward[2][b, 0, j]].tolist()) == (j in full)
                assert (i in backward[1][b, 0, j, : backward[0][b, 0, j]].tolist()) == (j in part)


@pytest.mark.parametrize(("groups", "view"), [(1, True), (2, False)])
def test_repeated_heads_are_those_of_grouped_attention(groups, view):
    t = torch.randn(2, 3, groups, 4)
    out = sdpa.repeat_heads(t, 3)
    assert torch.equal(out, t.repeat_interleave(3, dim=2)) and (out.data_ptr() == t.data_ptr()) == view


def test_fa4_adapter_imports_where_the_package_is_installed():
    pytest.importorskip("flash_attn.cute")
    assert fa4.missing_packages() == [] and callable(fa4._mask_function())


@pytest.mark.slow
def test_fa4_compiles_forward_and_backward_where_the_package_is_installed():
    if missing := fa4.missing_packages():
        pytest.skip(f"not installed: {', '.join(missing)}")
    script = Path(__file__).with_name("fa4_compile.py")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), "256", "128", "64"], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.split("\n")[:3] == ["COMPILED 256", "COMPILED 128", "COMPILED 64"], done.stderr
