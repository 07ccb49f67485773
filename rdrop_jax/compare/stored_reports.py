"""Pages and a forest plot from stored JSON reports, without their runs.

python -m rdrop_jax.compare --render docs/results
python -m rdrop_jax.compare --forest docs/results --output docs/results/forest.svg
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from rdrop_jax.cli import flags
from rdrop_jax.compare import render, stats, svg
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json

_logger = logging.getLogger(__name__)
# Fields of a report that every page needs.
_FIELDS = {"format", "verdict", "metric", "protocol", "arms", "curves", "timings"}


def read_reports(folder: Path) -> Mapping[Path, render.Report]:
    """Read the JSON reports of a folder, by path; skip other JSON files.

    Raises:
      InputError: no such folder, no report in it, or an unreadable JSON file.
    """
    found = {path: read_json(path) for path in sorted(folder.glob("*.json"))}
    reports = {path: x for path, x in found.items() if x.keys() >= _FIELDS}
    if not reports:
        raise InputError(
            f"{folder}: expected JSON reports of rdrop_jax.compare, found none"
        )
    for path, report in reports.items():
        if report["format"] != 1:
            raise InputError(f"{path}: expected format 1, found {report['format']!r}")
    return reports


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

    Raises:
      InputError: no readable reports.
    """
    rows = []
    for path, report in read_reports(folder).items():
        name, mode = report["metric"]["name"], report["metric"]["mode"]
        arms = {arm["arm"]: arm for arm in report["arms"]}
        diff = arms["rdrop"]["difference"]
        if diff is None or diff["low"] is None:
            continue
        plain, rdrop = (arms[arm]["test"][name]["mean"] for arm in ("plain", "rdrop"))
        percent = (100 if mode == "max" else -100) / abs(plain)
        low, high = sorted((percent * diff["low"], percent * diff["high"]))
        verdict = stats.verdict(diff, higher_is_better=mode == "max")
        seeds = f"{len(diff['seeds'])} seeds"
        rows.append(
            svg.Interval(
                path.stem.replace("_", " "),
                percent * diff["mean"],
                low,
                high,
                note=f"{name} {plain:.3g} \u2192 {rdrop:.3g}, {seeds}",
                colour=svg.VERDICT_COLOURS.get(verdict, svg.VERDICT_COLOURS[""]),
            )
        )
    chart = svg.interval_chart(
        rows,
        title="Test score with R-Drop against plain training",
        x="change in % of the plain score, 95 % interval over seeds (right is better)",
        note="blue: helps; orange: hurts; grey: inconclusive, or fewer than 6 seeds",
        width=720,
    )
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
    parser.add_argument("--forest", type=flags.path, metavar="FOLDER")
    parser.add_argument("--output", type=flags.path, metavar="FILE", help="SVG file")
    args = flags.parse_plain(parser, argv)
    if args.render is not None:
        pages = render_folder(args.render)
        _logger.info("%d pages in %s", len(pages), args.render)
    if args.forest is not None:
        if args.output is None:
            raise InputError("--output: expected an SVG file for --forest, found none")
        _write(args.output, forest_plot(args.forest))
        _logger.info("forest plot in %s", args.output)
