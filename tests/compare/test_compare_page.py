"""The page of a comparison with many arms."""

import itertools
import json
import re
from pathlib import Path

import pytest
from helpers.charts import extents

from rdrop_jax.compare import render, svg

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def fifteen():
    return json.loads((RESULTS / "digits_questions.json").read_text())


def charts(text):
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


def test_legends_of_fifteen_arms_do_not_overlap(fifteen):
    drawn = charts(render.make_page(fifteen))
    assert len(drawn) == 5
    for chart in drawn:
        for left, right in extents(chart):
            assert left >= 0
            assert right <= svg.WIDTH
    for chart in drawn[1:]:
        rows = {}
        legend = re.findall(
            r'<path d="M([\d.]+) ([\d.]+)h25".*?/><text[^>]*>([^<]*)', chart
        )
        assert len(legend) > 10
        for left, below, name in legend:
            start = float(left)
            rows.setdefault(below, []).append((start, start + 30 + 6.5 * len(name)))
        for row in rows.values():
            for (_, end), (start, _) in itertools.pairwise(row):
                assert end <= start
        top = max(float(below) for below in rows)
        assert float(re.search(r'class="axis" d="M[\d.]+ ([\d.]+)V', chart)[1]) >= top


def test_styles_of_fifteen_arms_differ(fifteen):
    chart = charts(render.make_page(fifteen))[1]
    styles = re.findall(r'<path d="M[^"]*h25" fill="none" (.*?)/>', chart)
    assert len(styles) == len(set(styles)) == 15


def test_wide_tables_scroll_in_their_box(fifteen):
    text = render.make_page(fifteen)
    assert text.count("<table>") == text.count('<div class="table')
    assert text.count('<div class="table wide"><table><thead><tr><th>measure') == 1
    assert ".table { overflow-x: auto }" in text


def test_the_page_without_selection_runs(fifteen):
    text = render.make_page(fifteen)
    assert fifteen["protocol"]["selection_seeds"] == 0
    assert "Candidate settings" not in text
    assert "selected setting" not in text
    assert "Each arm was run on 10 seeds" in text


def test_long_names_are_shortened():
    name = "a" * 100
    chart = svg.line_chart(
        [svg.Line(name, 0, [1.0], [0.5], [0.0])], title="t", x="x", y="y"
    )
    assert max(right for _, right in extents(chart)) <= svg.WIDTH
    row = svg.Interval(name, 0.0, -1.0, 1.0)
    chart = svg.interval_chart([row], title="t", x="x")
    assert max(right for _, right in extents(chart)) <= svg.WIDTH
