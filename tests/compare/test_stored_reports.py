"""Stored reports become pages and a forest plot again."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.charts import extents

from rdrop_jax import compare
from rdrop_jax.compare import render, stored_reports
from rdrop_jax.errors import InputError

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def luminance(colour):
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_stored_report_becomes_its_page_and_markdown(tmp_path, capsys):
    shutil.copy(RESULTS / "multi30k.json", tmp_path)
    (tmp_path / "cost.json").write_text("{}")
    compare.main(["--render", str(tmp_path)])
    report = json.loads((RESULTS / "multi30k.json").read_text())
    page = (tmp_path / "multi30k.html").read_text()
    assert page == render.make_page(report)
    assert page.count("<svg") >= 4
    markdown = capsys.readouterr().out
    assert markdown.startswith(f"## multi30k\n\n{render.make_markdown(report)}")
    mean = report["arms"][0]["test"]["bleu"]["mean"]
    assert f"{mean:.4g} \u00b1" in markdown
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cost.json", "multi30k.html", "multi30k.json"}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda p: p.stem)
def test_stored_reports_are_minified_and_complete(path):
    text = path.read_text()
    assert text == json.dumps(json.loads(text), separators=(",", ":")) + "\n"
    assert not path.with_suffix(".html").exists()


def test_the_forest_plot_is_that_of_the_stored_reports():
    drawn = stored_reports.forest_plot(RESULTS)
    assert drawn == (RESULTS / "forest.svg").read_text()
    assert len(drawn.encode()) <= 30_000
    root = ElementTree.fromstring(drawn)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    for path in RESULTS.glob("*.json"):
        assert path.stem.replace("_", " ") in texts
    width = float(root.attrib["viewBox"].split()[2])
    for left, right in extents(drawn):
        assert left >= 0
        assert right <= width
    for colour in set(re.findall("#[0-9a-f]{6}", drawn)):
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#0d1117")) >= 3.9


def test_a_lower_perplexity_is_drawn_at_the_right(tmp_path):
    shutil.copy(RESULTS / "brown_adaptive.json", tmp_path)
    compare.main(["--forest", str(tmp_path), "--output", str(tmp_path / "a.svg")])
    drawn = (tmp_path / "a.svg").read_text()
    zero = float(re.search(r'class="axis" d="M([\d.]+) ', drawn)[1])
    (mean,) = re.findall(r'd="M([\d.]+) .*#2f81c9" stroke-width="3"', drawn)
    assert float(mean) > zero
    assert "perplexity 131 \u2192 127, 6 seeds, 980 steps, " in drawn


def test_controls_have_rows_of_their_own():
    report = json.loads((RESULTS / "digits_questions.json").read_text())
    row = stored_reports._effect(report, "equal_compute", "x")
    arms = {arm["arm"]: arm["test"]["accuracy"]["mean"] for arm in report["arms"]}
    ratio = arms["rdrop"] / arms["equal_compute"] - 1
    assert row.mean == pytest.approx(100 * ratio)
    assert row.low < row.mean < row.high
    steps, seconds = row.note.split(", ")[2:]
    assert steps == "2,900 \u2192 2,000 steps"
    theirs, ours = map(int, seconds.removesuffix(" s").split(" \u2192 "))
    assert ours == pytest.approx(theirs, rel=0.2)
    assert stored_reports._effect(report, "no such arm", "x") is None


def test_controls_are_compared_with_rdrop():
    report = json.loads((RESULTS / "digits_questions.json").read_text())
    rows = {row["control"]: row for row in render.controls_table(report)}
    assert rows.keys() == {"equal_compute", "two_passes", "double_batch"}
    row = rows["two_passes"]
    assert row["rdrop minus control"] == "\u22120.0025"
    assert row["95 % interval over seeds"] == "\u22120.01519 to +0.01019"
    assert "R-Drop against the controls" in render.make_page(report)
    report = json.loads((RESULTS / "multi30k.json").read_text())
    assert render.controls_table(report) == []
    assert "R-Drop against the controls" not in render.make_page(report)


def test_an_arm_whose_score_is_0_has_no_percentage(caplog):
    report = json.loads((RESULTS / "glue_cola.json").read_text())
    plain = next(arm for arm in report["arms"] if arm["arm"] == "plain")
    scores = plain["test"][report["metric"]["name"]]
    scores["values"] = [0.0 for _ in scores["values"]]
    assert stored_reports._effect(report, "plain", "cola") is None
    assert "cola: no row, because the mean matthews of plain is 0" in caplog.text


def settings_report(folder, mode="max", settings=()):
    report = json.loads((RESULTS / "digits_200.json").read_text())
    report["metric"]["chosen_mode"] = mode
    report["protocol"]["selection_seeds"] = 2
    report["exploratory"] = [
        {"arm": arm, "setting": text, "picked": mean == 0.9, "seeds": [0, 1]}
        | {"validation": {"mean": mean, "sd": None, "values": [mean]}}
        for arm, text, mean in settings
    ]
    (folder / "report.json").write_text(json.dumps(report))
    return folder / "report.json"


def test_settings_become_a_heat_map(tmp_path):
    settings = [
        ("plain", "lr=0.001, dropout=0.1", 0.7),
        ("plain", "lr=0.0005, dropout=0.1", 0.75),
        ("two_passes", "lr=0.0005, dropout=0.1", 0.2),
        ("rdrop", "alpha=1, lr=0.001, dropout=0.1", 0.9),
        ("rdrop", "alpha=5, lr=0.0005, dropout=0.1", 0.8),
        ("rdrop", "alpha=5, lr=0.001, dropout=0.1", None),  # was infinite
    ]
    fills = {}
    for mode in ("max", "min"):
        path = settings_report(tmp_path, mode, settings)
        out = tmp_path / "map.svg"
        compare.main([f"--heatmap={path}", f"--output={out}"])
        drawn = out.read_text()
        root = ElementTree.fromstring(drawn)
        texts = [x.text for x in root.iter("{http://www.w3.org/2000/svg}text")]
        assert texts[2:4] == ["0.0005", "0.001"]  # columns, in order of the numbers
        assert texts[4:7] == [
            "plain, dropout=0.1",
            "rdrop, alpha=1, dropout=0.1",
            "rdrop, alpha=5, dropout=0.1",
        ]
        cells = re.findall(r'fill="(#\w+)"( stroke)?[^<]*<text[^>]*>([\d.]+)', drawn)
        assert [text for _, frame, text in cells if frame] == ["0.9"]
        fills[mode] = {text: luminance(fill) for fill, _, text in cells}
        width = float(root.attrib["viewBox"].split()[2])
        assert all(0 <= left <= right <= width for left, right in extents(drawn))
        assert min(contrast(fill, "#000000") for fill, _, _ in cells) >= 7
    assert fills["max"]["0.9"] == min(fills["max"].values())
    assert fills["min"]["0.7"] == min(fills["min"].values())


def test_rates_of_all_arms_share_columns(tmp_path):
    settings = [
        ("plain", "lr=0.001", 0.7),
        ("plain", "lr=0.0005", 0.75),
        ("rdrop", "alpha=1", 0.9),
        ("rdrop", "alpha=5, lr=5e-4", 0.8),
    ]
    path, out = settings_report(tmp_path, "max", settings), tmp_path / "map.svg"
    report = json.loads(path.read_text())
    failed = report["exploratory"][0] | {"setting": "lr=0.1", "seeds": [1]}
    report["exploratory"].append(failed)  # one of its two runs
    path.write_text(json.dumps(report))
    compare.main([f"--heatmap={path}", f"--output={out}"])
    root = ElementTree.fromstring(out.read_text())
    texts = [x.text for x in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[2:7] == [
        "0.0005",
        "0.001",
        "plain",
        "rdrop, alpha=1",
        "rdrop, alpha=5",
    ]


def test_a_report_without_settings_has_no_heat_map(tmp_path):
    path = settings_report(tmp_path)
    with pytest.raises(InputError, match=r"report\.json: expected finite scores"):
        compare.main([f"--heatmap={path}", "--output=a.svg"])


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected JSON reports .*, found none"):
        compare.main(["--render", str(tmp_path)])
    with pytest.raises(InputError, match="--output: expected an SVG file"):
        compare.main(["--forest", str(RESULTS)])
    report = json.loads((RESULTS / "multi30k.json").read_text()) | {"format": 2}
    (tmp_path / "new.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"new\.json: expected format 1, found 2"):
        compare.main([f"--render={tmp_path}"])
    with pytest.raises(InputError, match=r"new\.json: expected format 1, found 2"):
        compare.main([f"--heatmap={tmp_path / 'new.json'}", "--output=a.svg"])
