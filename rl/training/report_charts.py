"""Line charts as inline SVG."""

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
WIDTH, HEIGHT = 420, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 8, 30
MAX_POINTS = 120  # of a line; more are averaged in groups


def thinned(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of neighbours."""
    group = max(1, math.ceil(len(points) / most))
    chunks = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(marks: list[float]) -> list[str]:
    """Just the digits that tell neighbours apart."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    if not 1e-4 <= step < 1e5:
        return [f"{m:.2e}" for m in marks]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{m + 0.0:.{digits}f}" for m in marks]


def number(value: float) -> str:
    """Three digits that count."""
    return "0" if value == 0 else f"{value:.3g}"


def line_chart(lines: Mapping[str, Points], x_label: str) -> str:
    """An SVG with axes, one line a name, a legend below it and the numbers as tooltips. Lines without points are left
    out; nothing at all gives an empty text."""
    data = {name: thinned(points) for name, points in lines.items() if points}
    if not data:
        return ""
    xs = [x for points in data.values() for x, _ in points]
    ys = [y for points in data.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1, margin = (x1 if x1 > x0 else x0 + 1), (0.05 * (y1 - y0) or 0.5)
    y0, y1 = y0 - margin, y1 + margin

    def place(x: float, y: float) -> tuple[float, float]:
        px = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return round(px, 1), round(TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(", ".join(data))}">']
    marks = ticks(y0, y1)
    for y, text in zip(marks, tick_labels(marks), strict=True):
        _, py = place(x0, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py}" y2="{py}"></line>')
        parts.append(f'<text x="{LEFT - 5}" y="{py + 3.5}" text-anchor="end">{text}</text>')
    for x in ticks(x0, x1):
        px, _ = place(x, y0)
        parts.append(f'<text x="{px}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{html.escape(x_label)}</text>')
    for (name, points), color in zip(data.items(), COLORS * len(data), strict=False):
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{px},{py}" for px, py in placed)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.6" points="{path}"></polyline>')
        for (x, y), (px, py) in zip(points, placed, strict=True):
            tip = f"{html.escape(name)} {number(y)} at {x:g}"
            parts.append(f'<circle cx="{px}" cy="{py}" r="5" fill="{color}"><title>{tip}</title></circle>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{c}"></i>{html.escape(n)}</span>' for n, c in zip(data, COLORS * 99, strict=False)
    )
    return "".join(parts) + f'<div class="legend">{legend}</div>'
