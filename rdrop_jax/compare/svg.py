"""Charts as SVG text, for self-contained pages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300  # in units of the viewBox; the font size is 12 units
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 30, 44
# Okabe and Ito's colours, distinct in most kinds of colour blindness. 7 colours and 5
# dashes have no common divisor, so 35 styles differ.
COLOURS = (
    "#444444",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#aa3377",
    "#56b4e9",
    "#a6761d",
)
_CHARACTER = 6.5  # upper estimate of the width of a character
_SAMPLE = 30  # width of a line's sample in the legend
_DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 4")


@dataclass(frozen=True)
class Line:
    """Mean curve with a band.

    Attributes:
      name: label in the legend.
      style: index of colour and dashes.
      x: x coordinates.
      mean: y coordinates.
      sd: half the height of the band.
    """

    name: str
    style: int
    x: Sequence[float]
    mean: Sequence[float]
    sd: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """Row of an interval chart.

    Attributes:
      name: label of the row.
      mean: position of the mark.
      low: left end.
      high: right end.
      points: single values, drawn as small dots.
    """

    name: str
    mean: float
    low: float
    high: float
    points: Sequence[float] = ()


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return about ``count`` round numbers within a range."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Return a short label for a tick."""
    return f"{value:.4g}".replace("-", "\u2212") if value else "0"


def line_chart(lines: Sequence[Line], *, title: str, x: str, y: str) -> str:
    """Draw means over x with bands of one standard deviation."""
    low_x, high_x = _range([v for line in lines for v in line.x])
    edges = [
        m + sign * s
        for line in lines
        for m, s in zip(line.mean, line.sd, strict=True)
        for sign in (-1, 1)
    ]
    low_y, high_y = _range(edges, margin=0.04)
    columns = legend_columns([line.name for line in lines])
    legend = 16 * math.ceil(len(lines) / columns)
    # HEIGHT includes one row of the legend.
    top, height = _TOP + legend, HEIGHT + max(legend - 16, 0)
    opacity = min(0.15, 0.75 / len(lines))

    def at(px: float, py: float) -> tuple[float, float]:
        across = (px - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)
        up = (py - low_y) / (high_y - low_y) * (height - top - _BOTTOM)
        return _LEFT + across, height - _BOTTOM - up

    parts = [_axes(title, x, y, top, height)]
    for tick in ticks(low_x, high_x):
        parts.append(_x_tick(at(tick, low_y)[0], label(tick), height))
    for tick in ticks(low_y, high_y):
        parts.append(_y_tick(at(low_x, tick)[1], label(tick)))
    for number, line in enumerate(lines):
        colour = COLOURS[line.style % len(COLOURS)]
        dash = _DASHES[line.style % len(_DASHES)]
        upper = [
            at(a, m + s) for a, m, s in zip(line.x, line.mean, line.sd, strict=True)
        ]
        lower = [
            at(a, m - s) for a, m, s in zip(line.x, line.mean, line.sd, strict=True)
        ]
        parts.append(
            f'<polygon points="{_points(upper + lower[::-1])}" fill="{colour}" '
            f'fill-opacity="{opacity:.2g}"/>'
        )
        middle = _points([at(a, m) for a, m in zip(line.x, line.mean, strict=True)])
        stroke = (
            f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        )
        parts.append(f'<polyline points="{middle}" {stroke}/>')
        wide = (WIDTH - 2 * _RIGHT) / columns
        left = round(_RIGHT + number % columns * wide)
        below = _TOP + 8 + 16 * (number // columns)
        name = shortened(line.name, wide - _SAMPLE)
        parts.append(
            f'<path d="M{left} {below - 4}h25" {stroke}/>'
            f'<text x="{left + _SAMPLE}" y="{below}">{escape(name)}</text>'
        )
    return _svg(title, height, parts)


def legend_columns(names: Sequence[str]) -> int:
    """Return the number of columns, 1 to 3, in which all names of a legend fit."""
    longest = _SAMPLE + _CHARACTER * max(len(name) for name in names)
    return max(1, min(3, int((WIDTH - 2 * _RIGHT) / longest)))


def shortened(text: str, width: float) -> str:
    """Return the text, with its end replaced by an ellipsis if it is too wide."""
    count = int(width / _CHARACTER)
    return text if len(text) <= count else text[: count - 1] + "\u2026"


def interval_chart(rows: Sequence[Interval], *, title: str, x: str) -> str:
    """Draw intervals and single values around zero, one row per item."""
    every = [v for r in rows for v in (r.low, r.high, *r.points) if math.isfinite(v)]
    low, high = _range([*every, 0.0], margin=0.06)
    height = _TOP + _BOTTOM + 44 * len(rows)
    bottom = height - _BOTTOM

    def at(value: float) -> float:
        return 28 + (value - low) / (high - low) * (WIDTH - 56)

    parts = [f'<text class="title" x="12" y="16">{escape(title)}</text>']
    for tick in ticks(low, high):
        parts.append(
            f'<path class="grid" d="M{at(tick):.1f} {_TOP}V{bottom}"/>'
            f'<text x="{at(tick):.1f}" y="{bottom + 15}" text-anchor="middle">'
            f"{label(tick)}</text>"
        )
    parts.append(f'<path class="axis" d="M{at(0.0):.1f} {_TOP}V{bottom}"/>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x)}</text>"
    )
    for number, row in enumerate(rows):
        y = _TOP + 44 * number + 30
        name = escape(shortened(row.name, WIDTH - 24.0))
        parts.append(f'<text x="12" y="{y - 16}">{name}</text>')
        parts += [
            f'<circle cx="{at(v):.1f}" cy="{y}" r="3" fill="#0072b2" '
            'fill-opacity="0.4"/>'
            for v in row.points
        ]
        if math.isfinite(row.low) and math.isfinite(row.high):
            parts.append(
                f'<path d="M{at(row.low):.1f} {y}H{at(row.high):.1f}" '
                'stroke="#0072b2" stroke-width="2"/>'
            )
        parts.append(
            f'<path d="M{at(row.mean):.1f} {y - 7}v14" stroke="#0072b2" '
            'stroke-width="3"/>'
        )
    return _svg(title, height, parts)


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.5 or 0.5
        return low - pad, high + pad
    pad = margin * (high - low)
    return low - pad, high + pad


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


def _axes(title: str, x: str, y: str, top: int, height: int) -> str:
    middle = (top + height - _BOTTOM) / 2
    return (
        f'<text class="title" x="{_LEFT}" y="16">{escape(title)}</text>'
        f'<path class="axis" d="M{_LEFT} {top}V{height - _BOTTOM}H{WIDTH - _RIGHT}"/>'
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{height - 8}" '
        f'text-anchor="middle">{escape(x)}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y)}</text>'
    )


def _x_tick(x: float, text: str, height: int) -> str:
    y = height - _BOTTOM
    return (
        f'<path class="axis" d="M{x:.1f} {y}v4"/>'
        f'<text x="{x:.1f}" y="{y + 17}" text-anchor="middle">{text}</text>'
    )


def _y_tick(y: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _points(pairs: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
