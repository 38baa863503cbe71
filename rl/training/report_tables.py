"""Tables of the report as HTML."""

import html
from typing import Any

Data = dict[str, Any]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Cells are text, escaped here; a pair (text, class) carries a class."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>"] if head else []
    lines += [f"<tr>{''.join(_cell(c) for c in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _cell(content: Any) -> str:
    if isinstance(content, tuple):
        text, kind = content
        return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"
    return f"<td>{html.escape(str(content))}</td>"


def interval(i: Data | None, neutral: float | None = None) -> tuple[str, str]:
    """Text and class: `clear` where the interval leaves `neutral` out."""
    if i is None:
        return "-", ""
    clear = neutral is not None and (i["low"] > neutral or i["high"] < neutral)
    return f"{i['mean']:.3f} [{i['low']:.3f}, {i['high']:.3f}]", "clear" if clear else ""


def comparison(r: Data) -> str:
    """The acting policy beside random actions in the same scenes."""
    base, ours = r["baseline"], r["policy"]
    head = ["measure", ours, base["policy"], f"{ours} - {base['policy']}", f"{ours} / {base['policy']}"]
    rows: list[list[Any]] = [
        [
            name, interval(r["measures"][name]), interval(base["measures"][name]),
            interval(c["difference"], 0.0), interval(c["ratio"], 1.0),
        ]
        for name, c in base["comparison"].items()
    ]  # fmt: skip
    rows += [[f"{k} of all episodes together", r["totals"][k], v, "", ""] for k, v in base["totals"].items()]
    return table(head, rows) + NOTE


def against_teacher(r: Data) -> str:
    """This world model beside that of the teacher on the same episodes."""
    rows: list[list[Any]] = [
        [f"{name}, states of {whose} actions", interval(c["difference"], 0.0), interval(c["ratio"], 1.0)]
        for whose, measures_ in r["against_teacher"].items()
        for name, c in measures_.items()
    ]
    return table(["world model", "this - teacher", "this / teacher"], rows) + NOTE


def warnings(r: Data) -> str:
    """Of what each uncertainty warns: frames of high loss, and every kind of unfamiliar scenes. Empty: not measured."""
    found: dict[str, dict[str, Data]] = {}
    for name, i in r["measures"].items():
        if name.startswith("auroc/"):
            of, by = name.removeprefix("auroc/").rsplit("/", 1)
            found.setdefault(of, {})[by] = i
    if not found:
        return ""
    columns = [c for c in WARNS if any(c in row for row in found.values())]
    rows: list[list[Any]] = [
        [of.replace("high_loss", "frames of high loss").replace("unfamiliar/", "unfamiliar scenes: ")]
        + [interval(row.get(c), 0.5) for c in columns]
        for of, row in found.items()
    ]
    head = "does uncertainty warn (AUROC, 0.5 is chance)"
    return table([head, *(WARNS[c] for c in columns)], rows) + CHANCE


def probing(r: Data) -> str:
    """What the memory knows of objects out of view. Empty: not measured."""
    cells = [interval(r["measures"].get(f"probe/{name}"), neutral) for name, neutral in PROBED.items()]
    if all(text == "-" for text, _ in cells):
        return ""
    head = ["does the memory know (balanced accuracy, 0.5 is chance)", "memory", "observation alone", "difference"]
    return table(head, [["side on which an object out of view stands", *cells]]) + CHANCE


def measures(r: Data) -> str:
    return table(["measure", "mean"], [[name, interval(i)] for name, i in sorted(r["measures"].items())])


NOTE = '<p class="note">Means with 95 % intervals over episodes, paired by scene; bold where the interval decides.</p>'
CHANCE = '<p class="note">95 % intervals over episodes; bold where they leave chance out.</p>'
WARNS = {"disagreement": "disagreement", "entropy": "entropy", "nll": "the loss itself"}
PROBED = {"memory": 0.5, "observation": 0.5, "memory_minus_observation": 0.0}
