"""Charts: round ticks, and nothing outside the box."""

import numpy as np
import pytest
from helpers.charts import extents

from rdrop_jax.compare import svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.93, 0.981, [0.93, 0.94, 0.95, 0.96, 0.97, 0.98]),
        (-30.0, 100.0, [-25, 0, 25, 50, 75, 100]),
        (-4e-4, 2e-4, [-4e-4, -3e-4, -2e-4, -1e-4, 0, 1e-4, 2e-4]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 0.3, 2000.0])
@pytest.mark.parametrize("values", [1, 2, 30])
def test_texts_stay_inside(scale, values):
    rng = np.random.default_rng(0)
    numbers = (scale * rng.normal(size=values)).tolist()
    steps = [10.0 * i for i in range(values)]
    lines = [
        svg.Line(f"arm_{i}", i, steps, numbers, [scale / 10] * values) for i in range(5)
    ]
    charts = [
        svg.line_chart(lines, title="a title", x="updates", y="accuracy"),
        svg.interval_chart(
            [svg.Interval("rdrop, alpha=1", numbers[0], -scale, scale, numbers)],
            title="Test, minus plain",
            x="difference",
        ),
    ]
    for chart in charts:
        for left, right in extents(chart):
            assert left >= 0
            assert right <= svg.WIDTH
        assert "nan" not in chart


def test_a_tick_at_the_edge_stays_inside():
    row = svg.Interval("double_batch", 0.0, -0.3585, 0.3474)
    chart = svg.interval_chart([row], title="Test", x="difference")
    assert ">\u22120.4<" in chart
    assert min(left for left, _ in extents(chart)) >= 0


def test_one_value_and_equal_values_have_a_range():
    line = svg.Line("plain", 0, [1.0], [0.5], [0.0])
    assert "<polyline" in svg.line_chart([line], title="t", x="x", y="y")
    none = svg.Interval("rdrop", 0.0, float("nan"), float("nan"), [0.0])
    assert "nan" not in svg.interval_chart([none], title="t", x="x")
