"""Pages and a forest plot from stored JSON reports, without their runs.

python -m rdrop_jax.compare --render docs/results
python -m rdrop_jax.compare --forest docs/results --output docs/results/forest.svg
python -m rdrop_jax.compare --heatmap runs/cmp/report.json --output settings.svg
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rdrop_jax.cli import flags
from rdrop_jax.compare import render, stats, svg
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json

_logger = logging.getLogger(__name__)
# Fields of a report that every page needs.
_FIELDS = {"format", "verdict", "metric", "protocol", "arms", "curves", "timings"}
_TO = " \u2192 "
# Arms with which a forest plot compares rdrop, besides plain.
_CONTROLS = {
    "equal_compute": "\u2013 for equal time",
    "two_passes": "\u2013 two passes",
}


def read_reports(folder: Path) -> Mapping[Path, render.Report]:
    """Read the JSON reports of a folder, by path; skip other JSON objects.

    Raises:
      InputError: no such folder, no report in it, or a file without a JSON object.
    """
    found = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    reports = {path: x for path, x in found.items() if x.keys() >= _FIELDS}
    if not reports:
        raise InputError(
            f"{folder}: expected JSON reports of rdrop_jax.compare, found none"
        )
    for path, report in reports.items():
        _check_format(path, report)
    return reports


def _check_format(path: Path, report: render.Report) -> None:
    if not report.keys() >= _FIELDS:
        raise InputError(f"{path}: expected a JSON report of rdrop_jax.compare")
    if report["format"] != 1:
        raise InputError(f"{path}: expected format 1, found {report['format']!r}")


def render_folder(folder: Path) -> list[Path]:
    """Write an HTML page next to each JSON report of a folder; print its Markdown.

    Returns:
      The paths of the pages.

    Raises:
      InputError: no readable reports, or files that cannot be written.
    """
    pages = []
    for path, report in read_reports(folder).items():
        print(f"## {path.stem}\n\n{render.make_markdown(report)}")
        pages.append(path.with_suffix(".html"))
        _write(pages[-1], render.make_page(report))
    return pages


def forest_plot(folder: Path) -> str:
    """Draw the effect of R-Drop in each JSON report of a folder, as SVG text.

    A row is the difference between the test scores of rdrop and plain, in percent of
    plain's score, with its interval over seeds; differences to the right are better.
    Rows below it compare rdrop with the controls of the report.

    Raises:
      InputError: no readable reports.
    """
    rows = []
    for path, report in read_reports(folder).items():
        names = {"plain": path.stem.replace("_", " "), **_CONTROLS}
        rows += [_effect(report, arm, name) for arm, name in names.items()]
    chart = svg.interval_chart(
        [row for row in rows if row is not None],
        title="Test score with R-Drop against plain training",
        x="change in % of the other score, 95 % interval over seeds (right is better)",
        note="blue: helps; orange: hurts; grey: inconclusive, or fewer than 6 seeds; "
        "seconds are those of training",
        width=900,
    )
    return _file(chart)


def _effect(report: render.Report, other: str, label: str) -> svg.Interval | None:
    """Compare rdrop with another arm.

    Returns:
      A row; None if there are no two seeds of both, or the other arm's mean is 0.
    """
    if (scores := render.paired_scores(report, other)) is None:
        return None
    ours, theirs = scores
    name, mode = report["metric"]["name"], report["metric"]["mode"]
    if not theirs.mean():
        _logger.warning(
            "%s: no row, because the mean %s of %s is 0", label, name, other
        )
        return None
    diff = stats.paired(ours, theirs)
    percent = (100 if mode == "max" else -100) / abs(theirs.mean())
    low, high = sorted((percent * diff.low, percent * diff.high))
    verdict = stats.verdict(asdict(diff), higher_is_better=mode == "max")
    arms = {arm["arm"]: arm for arm in report["arms"]}
    pair = [arms[other], arms["rdrop"]]
    notes = [f"{name} {theirs.mean():.3g}{_TO}{ours.mean():.3g}, {len(ours)} seeds"]
    notes.append(_TO.join(dict.fromkeys(f"{x['updates']:,}" for x in pair)) + " steps")
    speeds = [report["timings"].get(x["arm"]) for x in pair]
    times = [speed and speed["update_seconds"] for speed in speeds]
    if None not in times:
        seconds = [time * x["updates"] for time, x in zip(times, pair, strict=True)]
        notes.append(_TO.join(f"{x:.0f}" for x in seconds) + " s")
    return svg.Interval(
        label,
        percent * diff.mean,
        low,
        high,
        note=", ".join(notes),
        colour=svg.VERDICT_COLOURS.get(verdict, svg.VERDICT_COLOURS[""]),
    )


def heat_map(path: Path) -> str:
    """Draw the validation scores of the settings of a JSON report, as SVG text.

    Columns are learning rates, rows all other fields of plain and rdrop.

    Raises:
      InputError: an unreadable file, or a report whose arms had one setting.
    """
    report = read_json(path)
    _check_format(path, report)
    cells: dict[tuple[str, str], float] = {}
    picked = set()
    rows = [r for r in report["exploratory"] if r["arm"] in ("plain", "rdrop")]
    # Settings without a rate have the config's, which plain tries first.
    rates = [_rate(row["setting"]) for row in rows if row["arm"] == "plain"]
    seeds = report["protocol"]["selection_seeds"]
    for row in rows:
        if len(row["seeds"]) < seeds:  # a run failed or diverged
            continue
        others = [x for x in row["setting"].split(", ") if x and x[:3] != "lr="]
        rate = _rate(row["setting"]) or rates[0]
        at = ", ".join([row["arm"], *others]), rate
        if row["validation"]["mean"] is not None:  # else it was not finite
            cells[at] = row["validation"]["mean"]
        if row["picked"]:
            picked.add(at)
    if not cells:
        raise InputError(
            f"{path}: expected finite scores of several settings of an arm, found "
            "none. Start the comparison with several --alphas, or with --vary."
        )
    metric = report["metric"]
    chart = svg.heat_map(
        cells,
        picked,
        title=f"Validation {metric['chosen_by']} of {path.stem.replace('_', ' ')}, "
        f"mean of {seeds} {'seed' if seeds == 1 else 'seeds'}; frame: selected",
        x="learning rate" if any(column for _, column in cells) else "",
        lower_is_better=metric["chosen_mode"] == "min",
    )
    return _file(chart)


def _rate(setting: str) -> str:
    """Return the learning rate of a setting; "" if the config determines it."""
    found = re.search(r"(?:^|, )lr=([^,]+)", setting)
    return f"{float(found[1]):.6g}" if found else ""  # arms write 1e-3 and 0.001


def _file(chart: str) -> str:
    # A file needs the namespace, a chart in a page does not.
    return str(chart).replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def main(argv: Sequence[str]) -> None:
    """Parse the command line and draw stored reports."""
    parser = flags.Parser(prog="rdrop_jax.compare", description=__doc__)
    parser.add_argument("--render", type=flags.path, metavar="FOLDER")
    figure = parser.add_mutually_exclusive_group()
    figure.add_argument("--forest", type=flags.path, metavar="FOLDER")
    figure.add_argument("--heatmap", type=flags.path, metavar="FILE.json")
    parser.add_argument("--output", type=flags.path, metavar="FILE", help="SVG file")
    args = flags.parse_plain(parser, argv)
    if args.render is not None:
        pages = render_folder(args.render)
        _logger.info("%d pages in %s", len(pages), args.render)
    for name, draw in (("forest", forest_plot), ("heatmap", heat_map)):
        if (source := getattr(args, name)) is None:
            continue
        if args.output is None:
            raise InputError(f"--output: expected an SVG file for --{name}, found none")
        _write(args.output, draw(source))
        _logger.info("%s in %s", name, args.output)
