"""report.html of a pipeline: one file with everything in it, made from what the phases left on disk."""

import base64
import html
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Any

from rl.training import provenance
from rl.training.atomic_io import write_atomic
from rl.training.metrics_log import FILE_NAME
from rl.training.report_charts import line_chart
from rl.training.report_tables import against_teacher, comparison, measures, probing, table, warnings

TEMPLATE = Path(__file__).with_name("report_template.html")
PHASES = ("teacher", "student", "adversarial")
PICTURES, VIDEOS = 4, 2  # of each phase, the newest
# Curves shown at once, as groups of names without the phase; all others are in a fold.
CHARTS = (
    ("loss", "unseen_loss"), ("accuracy", "unseen_accuracy", "copy_accuracy"), ("ensemble_loss", "latent_loss"),
    ("return",), ("return_raw_disagreement",), ("return_raw_entropy",), ("reward_std", "action_std"), ("wm_nll",),
    ("held_out_random_loss", "held_out_past_loss", "held_out_current_loss", "held_out_noisy_loss"),
    ("approx_kl",), ("explained_variance",), ("env_steps_per_s",),
)  # fmt: skip
_NUMBER = re.compile(r"([0-9]+)")


def write_report(directory: Path) -> Path:
    """Writes `directory`/report.html of whatever phases there are; nothing in it refers to another file."""
    phases = [p for p in PHASES if (directory / p / "status.json").is_file()]
    results = {p: _json(directory / "evaluation" / f"{p}.json") for p in PHASES if _is_file(directory, p)}
    sections = {
        "Phases": _phases(directory, phases),
        "Results": "".join(_result(p, r) for p, r in results.items()) or "<p>Nothing is measured yet.</p>",
        "Curves": _curves(directory, phases),
        "Videos": _videos(directory, phases, results),
        "Samples": _samples(directory, phases),
        "Configuration": _configuration(directory, phases),
        "Versions": _versions(directory, phases),
    }
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"F1-VLA pipeline: {html.escape(directory.name)}",
        subtitle=f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {html.escape(provenance.machine())}",
        navigation="".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections),
        sections="".join(f'<h2 id="{n.lower()}">{n}</h2>\n<section>{body}</section>\n' for n, body in sections.items()),
    )
    path = directory / "report.html"
    write_atomic(path, page)
    return path


def _is_file(directory: Path, phase: str) -> bool:
    return (directory / "evaluation" / f"{phase}.json").is_file()


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _phases(directory: Path, phases: list[str]) -> str:
    times = _json(directory / "times.json") if (directory / "times.json").is_file() else {}
    rows = []
    for phase in phases:
        status = _json(directory / phase / "status.json")
        minutes = f"{times[phase] / 60:.1f}" if phase in times else "-"
        rows.append([phase, status["state"], f"{status['step']} of {status['total']}", minutes])
    rows += [[name, "", "", f"{s / 60:.1f}"] for name, s in times.items() if name not in phases]
    rows.append(["all", "", "", f"{sum(times.values()) / 60:.1f}"])
    return table(["phase", "state", "episodes or iterations", "minutes"], rows)


def _result(phase: str, r: dict[str, Any]) -> str:
    head = f"<h3>{phase}: {r['checkpoint']}, {r['episodes']} held-out episodes, {r['policy']} actions</h3>"
    text = head + "".join(f'<p class="note">{html.escape(n)}</p>' for n in r["notes"])
    if "baseline" in r:
        text += comparison(r)
    if "against_teacher" in r:
        text += against_teacher(r)
    text += warnings(r) + probing(r)
    return text + f"<details><summary>all measures of {phase}</summary>{measures(r)}</details>"


def read_curves(run: Path) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """Unit of the steps, and the points of every metric by name; values that were not finite are left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    unit = "step"
    if (run / FILE_NAME).is_file():
        for line in (run / FILE_NAME).read_text(encoding="utf-8").splitlines():
            (unit, step), *values = json.loads(line).items()
            for name, value in values:
                if isinstance(value, int | float):
                    curves.setdefault(name, []).append((float(step), float(value)))
    return unit, curves


def _curves(directory: Path, phases: list[str]) -> str:
    shown, rest = "", []
    for phase in phases:
        unit, curves = read_curves(directory / phase)
        groups = [{n: curves[f"{phase}/{n}"] for n in names if f"{phase}/{n}" in curves} for names in CHARTS]
        charts = [_chart(", ".join(g), g, unit) for g in groups if g]
        shown += f'<h3>{phase}</h3><div class="grid-of">{"".join(charts)}</div>'
        rest += [_chart(name, {name: points}, unit) for name, points in sorted(curves.items())]
    fold = f'<input id="search" placeholder="part of a name"><div id="all-curves" class="grid-of">{"".join(rest)}</div>'
    return f"{shown}<details><summary>all {len(rest)} curves</summary>{fold}</details>"


def _chart(name: str, lines: dict[str, list[tuple[float, float]]], unit: str) -> str:
    return f'<figure data-name="{html.escape(name)}">{line_chart(lines, unit)}</figure>'


def _videos(directory: Path, phases: list[str], results: dict[str, dict[str, Any]]) -> str:
    files = {f"{p}, measured: {Path(v).stem}": directory / "evaluation" / v
             for p, r in results.items() for v in r.get("videos", [])}  # fmt: skip
    for phase in phases:
        newest = _newest(directory / phase / "videos", ".mp4", VIDEOS)
        files |= {f"{phase}, while training: {v.stem}": v for v in newest}
    figures = [
        f'<figure><video controls loop muted preload="metadata" src="{_inline(path, "video/mp4")}"></video>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, path in files.items()
    ]
    return f'<div class="grid-of wide">{"".join(figures)}</div>'


def _samples(directory: Path, phases: list[str]) -> str:
    figures = [
        f'<figure><img alt="{phase} {path.stem}" src="{_inline(path, "image/png")}">'
        f"<figcaption>{phase}, {path.stem}</figcaption></figure>"
        for phase in phases
        for path in _newest(directory / phase / "samples", ".png", PICTURES)
    ]
    return f'<div class="grid-of wide">{"".join(figures)}</div>'


def _newest(directory: Path, suffix: str, count: int) -> list[Path]:
    """By the number in their names."""
    numbered = [(int(m.group(1)), p) for p in directory.glob(f"*{suffix}") if (m := _NUMBER.search(p.name))]
    return [p for _, p in sorted(numbered)[-count:]]


def _inline(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _configuration(directory: Path, phases: list[str]) -> str:
    files = [directory / "config.yaml"] + [directory / p / "model_config.yaml" for p in phases[:1]]
    return "".join(
        f"<details><summary>{p.relative_to(directory)}</summary>"
        f"<pre>{html.escape(p.read_text(encoding='utf-8'))}</pre></details>"
        for p in files
        if p.is_file()
    )


def _versions(directory: Path, phases: list[str]) -> str:
    text = ""
    for phase in phases:
        last = json.loads((directory / phase / "provenance.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        versions = {"python": last["python"], **last["versions"]}
        rows = [["commit", last["commit"]], ["started", last["started"]], ["command", " ".join(last["command"])]]
        rows.append(["versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v is not None)])
        text += f"<h3>{phase}</h3>" + table([], rows)
    return text
