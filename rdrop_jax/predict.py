"""python -m rdrop_jax.predict --workdir runs/vit --input photo.jpg more_photos/

One JSON line per input: for images the label, its name and probability, and all
probabilities; for image files also which one.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax import flags
from rdrop_jax.errors import InputError
from rdrop_jax.runtime import workdir as workdir_lib


def load(
    workdir: str | Path, checkpoint: str = "best"
) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    """A trained model as a function, compiled once per shape.

    Args:
      workdir: folder of the run.
      checkpoint: "best", "last" or a step.

    Returns:
      Inputs of the task to answers: for images, arrays [height, width, channels] of
      pixels from 0 to 255 to ``{"label", "probability", "probabilities"}``.

    Raises:
      InputError: no such run or checkpoint.
    """
    from rdrop_jax.run import open_run  # jax starts here

    run = open_run(Path(workdir), checkpoint)
    predictor = run.task.predictor(run.mesh)
    return lambda inputs: list(predictor.run(run.params, inputs))


def main(argv: Sequence[str]) -> None:
    """Parses the command line and streams answers."""
    parser = flags.Parser(prog="rdrop_jax.predict", description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--input",
        default=["-"],
        nargs="+",
        metavar="FILE",
        help="files or folders, or - for standard input",
    )
    parser.add_argument("--split", help="answer for the dataset's own rows instead")
    parser.add_argument("--output", default="-", help="file, or - for standard output")
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|last|STEP", help="default: best"
    )
    args = flags.parse_plain(parser, argv)
    workdir_lib.read(args.workdir)
    from rdrop_jax.run import open_run

    run = open_run(args.workdir, args.checkpoint)
    predictor = run.task.predictor(run.mesh)
    if args.split is None:
        inputs: Iterable[Any] = itertools.chain.from_iterable(
            map(predictor.read, args.input)
        )
    elif args.split in run.task.evaluators:
        inputs = predictor.rows(args.split)
    else:
        known = ", ".join(run.task.evaluators)
        raise InputError(f"--split: expected one of {known}, found {args.split!r}")
    answers = predictor.run(run.params, inputs)
    first = list(itertools.islice(answers, 1))  # input that fails leaves no output
    try:
        with open(args.output, "w") if args.output != "-" else sys.stdout as out:
            for answer in itertools.chain(first, answers):
                print(json.dumps(answer), file=out, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"--output: cannot write {args.output!r}: {error.strerror}"
        ) from error


if __name__ == "__main__":
    flags.run(main)
