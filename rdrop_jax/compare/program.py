"""python -m rdrop_jax.compare --config configs/vit.py --alphas 0,1,5 --seeds 6

Trains with and without R-Drop at equal budgets and reports whether R-Drop helps.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.compare import render, runs
from rdrop_jax.compare.options import ARMS, Options, check
from rdrop_jax.compare.phases import Comparison, claim
from rdrop_jax.compare.report import make_report
from rdrop_jax.data import ready
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.files import paths
from rdrop_jax.files.disk import explained, write_json, write_text
from rdrop_jax.training import lock, preemption
from rdrop_jax.training.task import direction


def compare(
    options: Options,
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
    base = check(options)
    ready.completed(base)
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    with lock.held(workdir), preemption.stoppable() as stop:
        began = claim(options, config_lib.flatten(base), workdir, command)
        found = Comparison(options, began, workdir, jobs=jobs, start=start, stop=stop)
        found.make_runs()
        report = make_report(found.evidence())
        write_json(workdir / "report.json", report)
        write_text(workdir / "report.md", render.make_markdown(report))
        write_text(workdir / "report.html", render.make_page(report))
    print(render.make_markdown(report))
    print(f"report in {workdir}/report.html, .json and .md", flush=True)
    rdrop = next(arm for arm in report["arms"] if arm["arm"] == "rdrop")
    if rdrop["difference"] is None:
        raise TrainingError(report["verdict"]["sentence"])
    return report


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise InputError(f"--alphas: expected numbers, found {text!r}") from None


def _field(flag: str, text: str, form: str) -> tuple[str, str]:
    """Split the argument of a flag into field name and value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{flag}: expected {form}, found {text!r}")
    return name, value


def _axis(text: str) -> tuple[str, tuple[str, ...]]:
    name, values = _field("--vary", text, "FIELD=VALUE,VALUE")
    return name, tuple(value for value in values.split(",") if value)


def _ablation(text: str) -> dict[str, str]:
    return dict([_field("--ablate", text, "FIELD=VALUE")])


def read_options(argv: Sequence[str]) -> tuple[Options, Path, int]:
    """Parse the command line.

    Returns:
      The options, the workdir and the number of concurrent runs.
    """
    parser = flags.Parser(prog="rdrop_jax.compare", description=__doc__)
    add = parser.add_argument
    add("--config", metavar="FILE[:PRESET]", required=True)
    add("--workdir", type=flags.path, required=True)
    add("--alphas", default="1", help="those above 0 are tried by rdrop; default: 1")
    add("--seeds", type=int, default=6, help="to choose settings by; default: 6")
    add("--final_seeds", type=int, help="others, for the verdict; default: --seeds")
    add("--arms", default="", help=f"besides plain and rdrop: {', '.join(ARMS)}")
    add(
        "--ablate",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="adds an arm that is rdrop with this field",
    )
    add("--vary", action="append", default=[], metavar="FIELD=VALUE,VALUE")
    add("--metric", metavar="NAME", help="of the verdict; default: eval.metric")
    add("--jobs", type=int, default=1, help="runs at a time; default: 1")
    args, overrides = flags.parse(parser, argv)
    if args.jobs < 1:
        raise InputError(f"--jobs: expected at least 1, found {args.jobs}")
    metric = args.metric or flags.load(args.config, overrides).eval.metric
    name, colon, mode = metric.partition(":")
    if colon and mode != direction(name):
        raise InputError(
            f"--metric: expected {name} or {name}:{direction(name)}, found "
            f"{args.metric!r}"
        )
    ablations = {text: _ablation(text) for text in args.ablate}
    named = [word for word in args.arms.split(",") if word]
    options = Options(
        config=args.config,
        overrides=overrides,
        alphas=_numbers(args.alphas),
        seeds=args.seeds,
        final_seeds=args.seeds if args.final_seeds is None else args.final_seeds,
        arms=tuple(dict.fromkeys(["plain", "rdrop", *named, *ablations])),
        vary=dict(_axis(text) for text in args.vary),
        metric=name,
        mode=direction(name),
        ablations=ablations,
    )
    return options, args.workdir, args.jobs


def main(argv: Sequence[str]) -> None:
    """Parse the command line and run the comparison."""
    options, workdir, jobs = read_options(argv)
    command = f"python -m rdrop_jax.compare {shlex.join(argv)}"
    compare(options, workdir, jobs=jobs, command=command)
