"""The report is one file that a browser shows: its structure, and a real browser where there is one."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rl.training.report import read_curves, write_report
from rl.training.report_charts import MAX_POINTS, line_chart, thinned, tick_labels, ticks
from rl.training.report_tables import interval, probing, table, warnings
from tests.training.browser import check_everything_is_shown, dumped_page, headless
from tests.training.report_files import make_pipeline

VOID = {"meta", "img", "input", "br", "hr", "link"}


class _Page(HTMLParser):
    """Collects elements and checks that every one is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reports") / "night <run>"
    make_pipeline(directory)
    return write_report(directory)


@pytest.fixture(scope="module")
def page(report: Path) -> _Page:
    parsed = _Page()
    parsed.feed(report.read_text(encoding="utf-8"))
    parsed.close()
    return parsed


def test_the_page_is_well_formed_and_every_link_leads_within_it(page: _Page) -> None:
    assert page.open == []
    anchors = {a["id"] for _, a in page.elements if "id" in a}
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(links) == 7 and all(x is not None and x[0] == "#" and x[1:] in anchors for x in links)


def test_nothing_is_fetched_from_outside(page: _Page, report: Path) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "poster", "srcset"):
            if name in attributes:
                assert str(attributes[name]).startswith("data:"), (tag, str(attributes[name])[:60])
    text = re.sub(r"data:[a-z/0-9]+;base64,[A-Za-z0-9+/=]+", "", report.read_text(encoding="utf-8"))
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text


def test_pictures_and_videos_are_the_files_themselves(page: _Page, report: Path) -> None:
    def inside(tag: str) -> set[bytes]:
        return {base64.b64decode(str(a["src"]).split(",", 1)[1]) for t, a in page.elements if t == tag}

    home = report.parent
    assert inside("img") == {p.read_bytes() for p in home.glob("*/samples/*.png")} and len(inside("img")) == 4
    videos = {p.read_bytes() for p in [*home.glob("*/videos/*.mp4"), *home.glob("evaluation/*.videos/*.mp4")]}
    assert inside("video") == videos


def test_results_carry_their_intervals_and_mark_the_decided_ones(page: _Page, report: Path) -> None:
    source = report.read_text(encoding="utf-8")
    assert '<td class="clear">1.600 [1.400, 1.800]</td>' in source  # beyond 1
    assert '<td class="clear">8.000 [5.000, 11.000]</td>' in source  # beyond 0
    assert "<td>0.100 [-0.200, 0.400]</td><td>-</td>" in source
    assert '<td class="clear">-0.300 [-0.400, -0.200]</td>' in source
    text = " ".join(page.text)
    for expected in ("checkpoint-40, 12 held-out episodes, explorer actions", "teacher-commit", "torch 2.12.0", "1.5"):
        assert expected in text
    assert "sapien" not in text and "old" not in page.text  # what is absent, and earlier starts, are left out


def test_whether_uncertainty_warns_and_what_the_memory_knows_stand_before_the_fold(report: Path) -> None:
    results = report.read_text(encoding="utf-8").split("<details><summary>all measures of student")[0]
    assert "<th>disagreement</th><th>entropy</th><th>the loss itself</th>" in results
    assert (
        '<tr><td>frames of high loss</td><td class="clear">0.690 [0.650, 0.720]</td>'
        '<td class="clear">0.280 [0.230, 0.330]</td><td>-</td></tr>'
        "<tr><td>unfamiliar scenes: num_objects=24 a=&lt;b&gt;</td><td>0.520 [0.460, 0.580]</td><td>-</td>"
        '<td class="clear">0.600 [0.550, 0.650]</td></tr>'
    ) in results
    assert (
        '<td class="clear">0.620 [0.600, 0.640]</td><td>0.510 [0.480, 0.540]</td>'
        '<td class="clear">0.110 [0.080, 0.140]</td>'
    ) in results
    nothing = {"measures": {"frame/nll": {"mean": 1.0, "low": 1.0, "high": 1.0}}}
    assert warnings(nothing) == "" and probing(nothing) == ""


def test_what_users_wrote_is_shown_and_not_interpreted(page: _Page, report: Path) -> None:
    text = " ".join(page.text)
    assert "push <b> & pull" in text and "a <note>" in text and "<&>" in text and "night <run>" in text
    assert "b" not in {tag for tag, _ in page.elements}


def test_a_report_of_nothing_is_a_page_too(tmp_path: Path) -> None:
    parsed = _Page()
    parsed.feed(write_report(tmp_path).read_text(encoding="utf-8"))
    assert parsed.open == [] and "Nothing is measured yet." in " ".join(parsed.text)


def test_curves_leave_out_what_was_not_finite(report: Path) -> None:
    unit, curves = read_curves(report.parent / "student")
    assert unit == "episode" and len(curves["student/loss"]) == 40
    assert [x for x, _ in curves["student/return"][:3]] == [1.0, 3.0, 4.0]


# --- charts and cells ------------------------------------------------------------------------------------------------


def test_ticks_are_round_numbers_within_the_range() -> None:
    assert ticks(0, 10) == [0, 5, 10]
    assert ticks(0, 8) == [0, 2, 4, 6, 8]
    assert ticks(-0.03, 0.05) == pytest.approx([-0.02, 0, 0.02, 0.04])
    assert ticks(3, 3) == [3]
    assert tick_labels([3.44, 3.445, 3.45]) == ["3.440", "3.445", "3.450"]
    assert tick_labels([0, 5, 10]) == ["0", "5", "10"] and tick_labels([1e-7, 2e-7]) == ["1.00e-07", "2.00e-07"]


def test_long_lines_are_averaged_in_groups() -> None:
    points = [(float(x), float(x % 2)) for x in range(10 * MAX_POINTS)]
    short = thinned(points)
    assert len(short) == MAX_POINTS and short[0] == (4.5, 0.5)
    assert thinned(points[:5]) == points[:5]


def test_a_line_runs_from_corner_to_corner_of_its_range() -> None:
    svg = line_chart({"up": [(0.0, 0.0), (10.0, 1.0)], "absent": []}, "episode")
    (path,) = re.findall(r'points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = (tuple(map(float, p.split(","))) for p in path.split())
    assert (x0, x1) == (52, 410) and y0 > y1 and 8 < y1 < y0 < 180
    assert "absent" not in svg and "up 1 at 10" in svg
    assert line_chart({"absent": []}, "episode") == "" and line_chart({"flat": [(1.0, 2.0)]}, "e").count("<circle") == 1


def test_cells_are_escaped_and_intervals_are_judged() -> None:
    assert table(["a<b"], [["x&y", ("1", "clear"), ("2", "")]]) == (
        '<table><tr><th>a&lt;b</th></tr><tr><td>x&amp;y</td><td class="clear">1</td><td>2</td></tr></table>'
    )
    around = {"mean": 1.0, "low": 0.5, "high": 1.5}
    assert (
        interval(around, 1.0)[1] == "" and interval(around, 0.0)[1] == "clear" and interval(around, 2.0)[1] == "clear"
    )
    assert interval(None, 0.0) == ("-", "")


# --- a real browser --------------------------------------------------------------------------------------------------


def test_a_browser_shows_every_picture_and_runs_the_script(browser: str, report: Path, tmp_path: Path) -> None:
    check_everything_is_shown(dumped_page(browser, tmp_path, report), report)


def test_a_browser_draws_the_page(browser: str, report: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    target = tmp_path / "page.png"
    headless(browser, tmp_path / "profile", f"--screenshot={target}", "--window-size=1360,2400", report.as_uri())
    with image.open(target) as picture:
        assert picture.size == (1360, 2400)
        colours = picture.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 500  # charts and pictures, not a blank page or an error


def test_a_browser_counts_what_it_cannot_show(browser: str, report: Path, tmp_path: Path) -> None:
    source = report.read_text(encoding="utf-8")
    for start in ("data:image/png;base64,", "data:video/mp4;base64,"):
        source = source.replace(start, start + "AAAA", 1)
    broken = tmp_path / "broken.html"
    broken.write_text(source, encoding="utf-8")
    dom = dumped_page(browser, tmp_path / "profile", broken)
    assert 'data-broken-images="1"' in dom and 'data-broken-videos="1"' in dom
