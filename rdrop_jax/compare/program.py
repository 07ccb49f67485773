"""python -m rdrop_jax.compare --config configs/vit.py --alphas 1,5 --workdir runs/cmp

Trains with and without R-Drop at equal budgets and reports whether R-Drop helps.
--render FOLDER makes the page of each stored JSON report again and prints its Markdown;
--forest FOLDER --output FILE draws one figure of all stored reports, and
--heatmap REPORT --output FILE one of the settings that a comparison tried.
"""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import checks, flags
from rdrop_jax.compare import render, runs, stored_reports
from rdrop_jax.compare.comparison import (
    Comparison,
    open_comparison,
    stored_comparison,
)
from rdrop_jax.compare.comparison_options import ARMS, ComparisonOptions, check_options
from rdrop_jax.compare.pins import find_pins
from rdrop_jax.compare.report import make_report
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.files import paths
from rdrop_jax.files.disk import explained, write_json, write_text
from rdrop_jax.training import direction, preemption
from rdrop_jax.training import workdir as workdir_lib

_logger = logging.getLogger(__name__)


def compare(
    options: ComparisonOptions,
    workdir: Path,
    *,
    jobs: int = 1,
    command: str = "",
    start: runs.Start = runs.start,
) -> dict[str, Any]:
    """Start or resume a comparison, execute its runs and write the report.

    Args:
      options: options of the comparison.
      workdir: folder of the comparison; created if absent.
      jobs: number of concurrent runs.
      command: command line to show in the report.
      start: function that starts the process of a run.

    Returns:
      The content of report.json.

    Raises:
      InputError: unusable arguments or data, or a workdir that is locked or belongs to
        a different comparison.
      Stopped: SIGTERM or SIGINT requested it.
      TrainingError: no seed was finished both with and without R-Drop.
    """
    paths.workdir(workdir)
    base = config_lib.flatten(check_options(options))
    stored = stored_comparison(options, base, workdir)
    if not stored:
        for change in options.changes:
            given = options.overrides | change
            checks.check_data_fields(options.load(change), given)
    pins = stored["pins"] if stored else find_pins(options)
    options = replace(options, pins=pins)
    tasks.check_data(options.load(options.pinned(options.overrides)))
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with workdir_lib.locked(workdir), preemption.stoppable() as stop:
        stored = open_comparison(options, base, workdir, command)
        comparison = Comparison(options, stored, workdir, jobs, start, stop)
        comparison.execute()
        report = make_report(comparison)
        write_json(workdir / "report.json", report)
        write_text(workdir / "report.md", render.make_markdown(report))
        write_text(workdir / "report.html", render.make_page(report))
    print(render.make_markdown(report), flush=True)
    _logger.info("report in %s/report.html, .json and .md", workdir)
    rdrop = next(arm for arm in report["arms"] if arm["arm"] == "rdrop")
    if rdrop["difference"] is None:
        raise TrainingError(report["verdict"]["sentence"])
    return report


def _assignment(flag: str, text: str, format: str) -> tuple[str, str]:
    """Split the argument of a flag into field name and value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{flag}: expected {format}, found {text!r}")
    return name, value


def _split(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def make_parser() -> flags.Parser:
    """Make the parser of the command line."""
    parser = flags.Parser(prog="rdrop_jax.compare", description=__doc__)
    add = parser.add_argument
    add("--config", metavar="FILE[:PRESET]", required=True, help="config of all runs")
    add("--workdir", type=flags.path, required=True, help="folder of runs and report")
    add("--alphas", default="1", help="alphas; rdrop tries those above 0; default: 1")
    add("--seeds", type=int, default=6, help="number of selection seeds; default: 6")
    add(
        "--final_seeds",
        type=int,
        help="number of new seeds for the verdict; default: --seeds",
    )
    add(
        "--arms",
        default="",
        help=f"arms in addition to plain and rdrop: {', '.join(ARMS)}",
    )
    add(
        "--ablate",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="add an arm that is rdrop with this field",
    )
    add(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=VALUE,VALUE",
        help="values that every arm selects among",
    )
    add("--metric", metavar="NAME", help="score of the verdict; default: eval.metric")
    add("--jobs", type=int, default=1, help="number of concurrent runs; default: 1")
    return parser


def read_options(argv: Sequence[str]) -> tuple[ComparisonOptions, Path, int]:
    """Parse the command line.

    Returns:
      The options, the workdir and the number of concurrent runs.
    """
    args, overrides = flags.parse(make_parser(), argv)
    if args.jobs < 1:
        raise InputError(f"--jobs: expected at least 1, found {args.jobs}")
    metric = args.metric or flags.load(args.config, overrides).eval.metric
    name, colon, mode = metric.partition(":")
    if colon and mode != direction(name):
        raise InputError(
            f"--metric: expected {name} or {name}:{direction(name)}, found "
            f"{args.metric!r}"
        )
    try:
        alphas = tuple(float(word) for word in _split(args.alphas))
    except ValueError:
        raise InputError(f"--alphas: expected numbers, found {args.alphas!r}") from None
    vary = [_assignment("--vary", text, "FIELD=VALUE,VALUE") for text in args.vary]
    fields = [field for field, _ in vary]
    if twice := [field for field in fields if fields.count(field) > 1]:
        raise InputError(
            f"--vary {twice[0]}: expected all values in one flag, found several flags"
        )
    ablations = {
        text: dict([_assignment("--ablate", text, "FIELD=VALUE")])
        for text in args.ablate
    }
    options = ComparisonOptions(
        config=args.config,
        overrides=overrides,
        alphas=alphas,
        seeds=args.seeds,
        final_seeds=args.seeds if args.final_seeds is None else args.final_seeds,
        arms=tuple(dict.fromkeys(["plain", "rdrop", *_split(args.arms), *ablations])),
        vary={field: _split(values) for field, values in vary},
        metric=name,
        mode=direction(name),
        ablations=ablations,
    )
    return options, args.workdir, args.jobs


def main(argv: Sequence[str]) -> None:
    """Parse the command line; run the comparison, or draw stored reports."""
    flags_given = {word.partition("=")[0] for word in argv}
    if flags_given & {"--render", "--forest", "--heatmap"}:
        stored_reports.main(argv)
        return
    options, workdir, jobs = read_options(argv)
    command = f"python -m rdrop_jax.compare {shlex.join(argv)}"
    compare(options, workdir, jobs=jobs, command=command)
