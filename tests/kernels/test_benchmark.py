"""What the benchmark reports, on shapes too small to time."""

import json

import pytest

from kernels import BlockMask, benchmark, dispatch


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
        assert r["rows"]["eager"]["useful_tflops"] == pytest.approx(flops / times["eager"] / 1e9)
    page = files["markdown"].read_text()
    assert page.count("| **sdpa** |") == 2 and page.count("| transformer 128 D32 |") == 10
    assert "python -m kernels.benchmark --device cpu --rounds 1" in page and "speed-up over eager" in page
    assert files["plot.png"].stat().st_size > 1000
