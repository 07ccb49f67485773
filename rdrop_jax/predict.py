"""python -m rdrop_jax.predict --workdir runs/vit --input photo.jpg more_photos/

One line per input: for translations, summaries and continued text a line of text, else
JSON: the number of the input, the input, its label and probability, and all
probabilities. --json and --n_best give JSON for text too. A language model
goes on where a line ends, or with --mode score says how probable it is.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from os.path import isfile, samefile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import flags
from rdrop_jax.errors import InputError
from rdrop_jax.runtime import paths
from rdrop_jax.runtime import workdir as workdir_lib


def load(
    workdir: str | Path, checkpoint: str = "best", mode: str | None = None
) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    """A trained model as a function, compiled once per shape.

    Args:
      workdir: folder of the run.
      checkpoint: "best", "last", a step or "average:N".
      mode: of a language model, "generate" or "score"; None takes the run's own.

    Returns:
      Lists of inputs of the task to answers. For images, arrays [height, width,
      channels] of pixels from 0 to 255, or paths, to ``{"row", "input", "label", "id",
      "probability", "probabilities"}``; the same for classes of texts or pairs of
      them. ``row`` counts inputs from 0; ``input`` is the text, the pair or the path,
      absent for arrays; ``label`` is the name of the class, its id as text if it has
      none; ``probabilities`` is by name. For sets of labels, ``label`` is a list
      of names; for numbers, a number; for an empty text, None. For translation and
      summarization, texts to ``{"source", "text", "score"}``; for language models,
      texts to ``{"prompt", "text"}`` or ``{"text", "log_prob", "perplexity", ...}``.

    Raises:
      InputError: no such run or checkpoint; inputs that are no list.
    """
    config = workdir_lib.read(paths.local("--workdir", workdir))
    if mode is not None:
        choose(config, mode)
    from rdrop_jax.run import open_run  # jax starts here

    run = open_run(Path(workdir), checkpoint, config)
    predictor = run.task.predictor(run.mesh)
    from rdrop_jax.tasks.answers import check_list

    return lambda inputs: list(predictor.run(run.params, check_list(inputs)))


def main(argv: Sequence[str]) -> None:
    """Parses the command line and streams answers."""
    parser = flags.Parser(prog="rdrop_jax.predict", description=__doc__)
    parser.add_argument("--workdir", type=flags.path, required=True)
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
        "--checkpoint",
        default="best",
        metavar="best|last|STEP|average:N",
        help="default: best",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines, with scores")
    parser.add_argument("--n_best", metavar="N", help="N answers, best first; as JSON")
    parser.add_argument("--mode", help="of language models: generate (default), score")
    args, config = flags.parse_run(parser, argv)
    if args.mode is not None:
        choose(config, args.mode)
    if args.n_best is not None:
        ask_for_n_best(config, args.n_best)
    for path in args.input:
        paths.local("--input", path)
    paths.local("--output", args.output)
    refuse_input(args.output, args.input)
    from rdrop_jax.run import open_run

    run = open_run(args.workdir, args.checkpoint, config)
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
    plain = None if args.json or args.n_best else predictor.text
    try:
        with (
            open(args.output, "w", encoding="utf-8")
            if args.output != "-"
            else contextlib.nullcontext(sys.stdout) as out
        ):
            for number, answer in enumerate(itertools.chain(first, answers), 1):
                for note in answer.get("notes", ()):
                    print(f"input {number}: {note}", file=sys.stderr)
                line = (
                    json.dumps(answer, ensure_ascii=False)
                    if plain is None
                    else plain(answer)
                )
                print(line, file=out, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"--output: cannot write {args.output!r}: {error.strerror}"
        ) from error


def refuse_input(output: str, inputs: Sequence[str]) -> None:
    """Refuses to write into what is read, which would be lost, or have no end.

    Raises:
      InputError: the output is one of the inputs.
    """
    for path in inputs:
        if isfile(path) and isfile(output) and samefile(path, output):
            raise InputError(
                f"--output: expected another file than those of --input, found {output}"
            )


def choose(config: ConfigDict, mode: str) -> None:
    """Sets what a task answers, where it has a choice.

    Raises:
      InputError: a task with one kind of answer.
    """
    if "predict" not in config.eval:
        raise InputError(f"--mode: task {config.task} has one, found {mode!r}")
    flags.override(config, {"eval.predict": mode})


def ask_for_n_best(config: ConfigDict, n_best: str) -> None:
    """Sets how many answers the task gives, and a beam that finds as many.

    Raises:
      InputError: not a number, or a task with one answer.
    """
    if "n_best" not in config.eval:
        raise InputError(f"--n_best: task {config.task} gives one answer")
    flags.override(config, {"eval.n_best": n_best})
    if config.eval.n_best > config.eval.beam:
        flags.override(config, {"eval.beam": n_best})


if __name__ == "__main__":
    flags.run(main)
