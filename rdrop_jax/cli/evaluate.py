"""python -m rdrop_jax.evaluate --workdir runs/vit [--split test]

Prints the scores of a split as JSON. --input scores a labelled file instead, for runs
of text classification, translation and summarization that were trained on files.
"""

import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.cli import flags
from rdrop_jax.data import tables
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths
from rdrop_jax.files.disk import json_ready
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.training import distributed
from rdrop_jax.training import workdir as workdir_lib

_INPUT_TASKS = ("text_classification", "translation", "summarization")
_logger = logging.getLogger(__name__)


def evaluate(
    workdir: str | Path | Sequence[str | Path],
    split: str | None,
    checkpoint: str,
    config: ConfigDict | None = None,
) -> dict[str, int | float | str]:
    """Score one checkpoint on one split.

    Args:
      workdir: folder of the run; several average their probabilities or numbers.
      split: name of a split of its dataset. None: "test" if the run has test data,
        else "validation".
      checkpoint: "best", "last", a step or "average:N".
      config: config of the first run, if its ``eval`` fields differ from the stored
        ones.

    Returns:
      The step and the task's scores; for several runs, the newest step and their
      number.

    Raises:
      InputError: no such run, checkpoint or split.
    """
    workdirs = paths.workdirs(workdir)
    config = config or workdir_lib.read(workdirs[0])
    from rdrop_jax.cli.run import open_runs  # jax starts here

    run = open_runs(workdirs, checkpoint, config)
    if split is None:
        split = "test" if "test" in run.task.evaluators else "validation"
        if split != "test":
            _logger.warning("--split: the run has no test data: scoring validation")
    run.check_split(split)
    scores = run.task.evaluators[split](run.mesh)(run.params)
    several = {"runs": len(workdirs)} if len(workdirs) > 1 else {}
    return {"step": run.step, **several, **scores}


def with_input(config: ConfigDict, path: str, split: str | None = None) -> ConfigDict:
    """Return a config whose test split is a file.

    Args:
      config: config of a run.
      path: name of the file as in ``data.files.test``, relative to the current folder.
      split: split to score, if one was named.

    Raises:
      InputError: the file is missing, `split` is not test, or the run is of another
        task than `_INPUT_TASKS` or was not trained on files.
    """
    if not path:
        raise InputError("--input: expected the name of a file, got an empty one")
    if split not in (None, "test"):
        raise InputError(f"--split: expected test or none with --input, got {split}")
    if config.task not in _INPUT_TASKS or config.data.name != "files":
        images = config.data.name in ("folder", "npz")
        remedy = " Set --config.data.dir to a folder with a test split." * images
        raise InputError(
            f"--input: expected a run of {' or '.join(_INPUT_TASKS)} with data.name="
            f"files, got {config.task} with data.name={config.data.name}.{remedy}"
        )
    absolute = Path(paths.local("--input", path)).absolute()
    config = config.copy_and_resolve_references().unlock()
    data = config.data
    if config.task != "text_classification":
        source, target = data.get("source", "source"), data.get("target", "target")
        parallel.find(absolute, source, target, field="--input")
    elif not tables.shards(absolute):
        raise InputError(f"--input: expected a file, found none at {path}")
    else:
        tables.check_format(absolute, "--input", lines=data.labels == "words")
    data.files.test = str(absolute)
    return config.lock()


def main(argv: Sequence[str]) -> None:
    """Parse the command line and print scores as one JSON line."""
    parser = flags.Parser(prog="rdrop_jax.evaluate", description=__doc__)
    flags.add_workdirs(parser)
    parser.add_argument(
        "--split", help="default: test, or validation if there is no test"
    )
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="labelled file to score as data.files.test, or prefix of parallel files",
    )
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="best|last|STEP|average:N",
        help="default: best",
    )
    distributed.add_flags(parser)
    args, config = flags.parse_run(parser, argv)
    if args.input is not None:
        config = with_input(config, args.input, args.split)
    cluster = distributed.from_flags(args)
    first = cluster is None or distributed.start(cluster) == 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # undo JAX's handler
    scores = evaluate(args.workdir, args.split, args.checkpoint, config)
    if first:
        print(json.dumps(json_ready(scores)))
