"""What the benchmark reports, on shapes too small to time."""

import json

import pytest
import torch

from kernels import BlockMask, benchmark, dispatch, eager, pinned
from kernels.clock import Rates


@pytest.fixture
def small(monkeypatch):
    mask = BlockMask.from_lengths([128])
    case = benchmark.Case("transformer 128 D32", mask, 1, 2, 1, 32, True)
    monkeypatch.setattr(benchmark, "cases", lambda *_: [case])


@pytest.mark.usefixtures("small")
def test_reports_have_every_contender_and_ratios_of_the_same_medians(tmp_path):
    files = {n: tmp_path / n for n in ("json", "markdown", "plot.png")}
    argv = ["--device", "cpu", "--rounds", "1", "--json", str(files["json"]), "--markdown", str(files["markdown"])]
    assert benchmark.main([*argv, "--plot", str(files["plot.png"])]) == 0
    report = json.loads(files["json"].read_text())
    assert [r["pass"] for r in report["results"]] == ["forward", "forward+backward"]
    for r in report["results"]:
        expected = {"eager", "dense"} | {b for b in ("reference", "sdpa", "matmul") if b in dispatch.BACKENDS}
        assert set(r["rows"]) == expected and r["auto"] == "sdpa"
        times = {n: x["ms"] for n, x in r["rows"].items()}
        assert r["rows"]["sdpa"]["times_faster_than"]["eager"] == pytest.approx(times["eager"] / times["sdpa"])
        # 128 x 128 visible pairs, 2 heads of 32: 4 products forward, 14 with the backward pass.
        flops = 128 * 128 * 2 * 32 * (4 if r["pass"] == "forward" else 14)
        assert r["kind"].endswith("head size 32, full") and r["dense_kernel"] in ("MATH", "FLASH_ATTENTION")
        assert r["rows"]["sdpa"]["fraction_of_floor"] == pytest.approx(r["floor_ms"] / times["sdpa"])
        assert r["rows"]["eager"]["useful_tflops"] == pytest.approx(flops / times["eager"] / 1e9)
    page = files["markdown"].read_text()
    assert page.count("| **sdpa** |") == 2 and page.count("| transformer 128 D32 |") == 10
    assert "python -m kernels.benchmark --device cpu --rounds 1" in page and "speed-up over eager" in page
    assert files["plot.png"].stat().st_size > 1000


@pytest.mark.usefixtures("small")
def test_fastest_backend_of_each_kind_is_pinned_and_then_chosen(tmp_path, monkeypatch):
    file = tmp_path / "pins.json"
    assert benchmark.main(["--device", "cpu", "--rounds", "1", "--pin", str(file), "--json", str(tmp_path / "r")]) == 0
    results = json.loads((tmp_path / "r").read_text())["results"]
    monkeypatch.setenv(pinned.FILE, str(file))
    for r in results:
        training = r["pass"] != "forward"
        kind = dispatch.kind_of("cpu", torch.float32, 32, training=training, queries=128, layout="full")
        found = dispatch.choose("auto", kind)
        times = {n: x["ms"] for n, x in r["rows"].items() if n in dispatch.BACKENDS}
        assert found.backend == min(times, key=times.__getitem__)
        assert found.reason.startswith("pinned: at most 1.00 x the best of 1 shapes on ")


def test_pin_is_the_backend_that_is_never_far_from_the_best():
    rows = [{"sdpa": 1.0, "triton": 1.2, "eager": 0.1}, {"sdpa": 3.0, "triton": 1.0}]
    rows.append({"sdpa": 2.0, "triton": 2.0, "fa4": 1.0})
    results = [{"kind": "k", "rows": {n: {"ms": ms} for n, ms in r.items()}} for r in rows]
    # sdpa is 3 times the best at worst, triton 2 times; fa4 does not run everywhere, eager is no backend.
    assert benchmark.fastest(results, "x") == {"k": pinned.Pin("triton", "at most 2.00 x the best of 3 shapes on x")}


def test_floor_is_the_slower_of_arithmetic_and_memory():
    case = benchmark.Case("c", BlockMask.from_lengths([2, 2]), 3, 4, 2, 8, True)
    pairs = 2 * 2 + 2 * 4
    work = 4 * 8 * 4 * 3 * pairs  # 4 D H a pair and sample
    moved = 4 * 3 * 8 * (2 * 4 * 4 + 2 * 4 * 2)  # bytes: q, out with 4 heads of 4 tokens, k, v with 2
    assert benchmark.floor(case, False, torch.float32, Rates(1.0, 1e9)) == (work, work)
    assert benchmark.floor(case, False, torch.float32, Rates(1e9, 1.0)) == (work, moved)


@pytest.mark.usefixtures("small")
def test_contender_that_fails_is_reported_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("no kernel\nmore")

    runs = {"eager": eager.attention, "sdpa": dispatch.load("sdpa"), "fa4": broken}
    monkeypatch.setattr(benchmark, "contenders", lambda *_: runs)
    assert benchmark.main(["--device", "cpu", "--rounds", "1", "--markdown", str(tmp_path / "m")]) == 1
    assert "FAILED: RuntimeError: no kernel" in capsys.readouterr().out
    assert "| fa4 | failed: RuntimeError: no kernel |" in (tmp_path / "m").read_text()
