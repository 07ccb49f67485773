"""Charts as SVG text, for self-contained pages. The markup is in templates/*.svg."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from rdrop_jax.compare import templates

WIDTH, HEIGHT = 420, 300  # in units of the viewBox; the font size is 12 units
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 30, 44
# Okabe and Ito's colours, distinct in most types of colour blindness. 7 colours and 5
# dashes have no common divisor, so 35 styles differ.
COLOURS = ["#444444", "#0072b2", "#d55e00", "#009e73", "#aa3377", "#56b4e9", "#a6761d"]
# Mid tones, readable on white and on dark pages; "" is no or an inconclusive verdict.
VERDICT_COLOURS = {"helps": "#2f81c9", "hurts": "#c9602b", "": "#787878"}
_DASHES = ("", "7 3", "2 2", "9 3 2 3", "4 4")
_CHARACTER = 6.5  # upper estimate of the width of a character
_SAMPLE = 30  # width of a line's sample in the legend
_ROW, _LEGEND_ROW = 20, 16  # heights
_CELL = 70  # width of a cell of a heat map
_WORST, _BEST = (246, 246, 246), (111, 174, 227)


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
      note: text at the right end of the row.
      colour: colour of the mark.
    """

    name: str
    mean: float
    low: float
    high: float
    points: Sequence[float] = ()
    note: str = ""
    colour: str = VERDICT_COLOURS["helps"]


def line_chart(lines: Sequence[Line], *, title: str, x: str, y: str) -> Markup:
    """Draw means over x with bands of one standard deviation."""
    columns = legend_columns([line.name for line in lines])
    legend = _LEGEND_ROW * math.ceil(len(lines) / columns)
    # HEIGHT includes one row of the legend.
    top, height = _TOP + legend, HEIGHT + max(legend - _LEGEND_ROW, 0)
    right, bottom = WIDTH - _RIGHT, height - _BOTTOM
    edges = [
        (np.subtract(line.mean, line.sd), np.add(line.mean, line.sd)) for line in lines
    ]
    x_range = _range(np.concatenate([line.x for line in lines]))
    y_range = _range(np.concatenate([v for pair in edges for v in pair]), margin=0.04)
    to_x, to_y = _scale(x_range, _LEFT, right), _scale(y_range, bottom, top)

    def points(xs: Iterable[float], ys: Iterable[float]) -> str:
        pairs = zip(xs, ys, strict=True)
        return " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in pairs)

    wide = (WIDTH - 2 * _RIGHT) / columns
    drawn = [
        {
            "colour": COLOURS[line.style % len(COLOURS)],
            "dash": _DASHES[line.style % len(_DASHES)],
            "band": f"{points(line.x, upper)} {points(line.x[::-1], lower[::-1])}",
            "mean": points(line.x, line.mean),
            "left": round(_RIGHT + number % columns * wide),
            "below": _TOP + 8 + _LEGEND_ROW * (number // columns),
            "name": shortened(line.name, wide - _SAMPLE),
        }
        for number, (line, (lower, upper)) in enumerate(zip(lines, edges, strict=True))
    ]
    return templates.render(
        "line_chart.svg",
        title=title,
        x=x,
        y=y,
        width=WIDTH,
        height=height,
        left=_LEFT,
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[(f"{to_x(tick):.1f}", label(tick)) for tick in ticks(*x_range)],
        y_ticks=[(to_y(tick), label(tick)) for tick in ticks(*y_range)],
        lines=drawn,
        opacity=f"{min(0.15, 0.75 / len(lines)):.2g}",
    )


def interval_chart(
    rows: Sequence[Interval], *, title: str, x: str, note: str = "", width: int = WIDTH
) -> Markup:
    """Draw intervals and single values around zero, one line per item.

    Args:
      rows: intervals.
      title: title of the chart.
      x: label of the axis.
      note: text under the title.
      width: total width; names take 160 units, notes of the rows what they need.
    """
    values = [v for r in rows for v in (r.low, r.high, *r.points) if math.isfinite(v)]
    limits = _range([*values, 0.0], margin=0.06)
    longest = max((len(row.note) for row in rows), default=0)
    left, right = 160, width - round(18 + _CHARACTER * longest)
    height = _TOP + 18 + _BOTTOM + _ROW * len(rows)
    scale = _scale(limits, left, right)

    def at(value: float) -> str:
        return f"{scale(value):.1f}"

    return templates.render(
        "interval_chart.svg",
        title=title,
        x=x,
        note=note,
        width=width,
        height=height,
        left=left,
        right=right,
        top=_TOP + 18,
        bottom=height - _BOTTOM,
        zero=at(0.0),
        ticks=[(at(tick), label(tick)) for tick in ticks(*limits)],
        rows=[
            {
                "y": _TOP + 18 + _ROW * number + 12,
                "name": shortened(row.name, left - 16.0),
                "note": row.note,
                "colour": row.colour,
                "points": [at(v) for v in row.points],
                "ends": math.isfinite(row.high - row.low)
                and (at(row.low), at(row.high)),
                "mean": at(row.mean),
            }
            for number, row in enumerate(rows)
        ],
    )


def heat_map(
    cells: Mapping[tuple[str, str], float],
    picked: Collection[tuple[str, str]],
    *,
    title: str,
    x: str,
    lower_is_better: bool = False,
) -> Markup:
    """Draw a table of scores whose cells are darker the better they are.

    Args:
      cells: scores by row and column.
      picked: cells with a frame.
      title: title of the chart.
      x: label of the columns, which are numbers.
      lower_is_better: True to draw the lowest score darkest.
    """
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = sorted({column for _, column in cells}, key=lambda text: float(text or 0))
    low, high = _range(list(cells.values()))

    def colour(value: float) -> str:
        share = (value - low) / (high - low)
        share = 1 - share if lower_is_better else share
        # From near white to a blue on which black text is readable.
        return "#{:02x}{:02x}{:02x}".format(
            *(round(a + share * (b - a)) for a, b in zip(_WORST, _BEST, strict=True))
        )

    left = round(24 + _CHARACTER * max(len(row) for row in rows))
    width = left + _CELL * max(len(columns), math.ceil(_CHARACTER * len(x) / _CELL))
    width = max(width + 12, round(24 + 1.15 * _CHARACTER * len(title)))
    return templates.render(
        "heat_map.svg",
        title=title,
        x=x,
        width=width,
        height=_TOP + _ROW * (len(rows) + 2) + 6,
        left=left,
        top=_TOP + 2 * _ROW,
        cell=_CELL,
        row_height=_ROW,
        columns=[(left + _CELL * (i + 0.5), c) for i, c in enumerate(columns)],
        rows=[(_TOP + _ROW * (i + 2), row) for i, row in enumerate(rows)],
        cells=[
            {
                "x": left + _CELL * columns.index(column),
                "y": _TOP + _ROW * (rows.index(row) + 2),
                "colour": colour(value),
                "text": f"{value:.4g}",
                "picked": (row, column) in picked,
            }
            for (row, column), value in cells.items()
        ],
    )


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


def legend_columns(names: Sequence[str]) -> int:
    """Return the number of columns, 1 to 3, in which all names of a legend fit."""
    longest = _SAMPLE + _CHARACTER * max(len(name) for name in names)
    return max(1, min(3, int((WIDTH - 2 * _RIGHT) / longest)))


def shortened(text: str, width: float) -> str:
    """Return the text, with its end replaced by an ellipsis if it is too wide."""
    count = int(width / _CHARACTER)
    return text if len(text) <= count else text[: count - 1] + "\u2026"


def _range(
    values: Sequence[float] | np.ndarray, margin: float = 0.0
) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.5 or 0.5
    else:
        pad = margin * (high - low)
    return low - pad, high + pad


def _scale(
    limits: tuple[float, float], start: int, end: int
) -> Callable[[float], float]:
    low, high = limits
    return lambda value: start + (value - low) / (high - low) * (end - start)
