"""python -m rdrop_jax.predict --workdir runs/vit --input photo.jpg more_photos/

Prints one line per input: the text of a translation or summary, else JSON. A classifier
gives the number of the input, the input, its label and probability, and all
probabilities. A language model continues each line, or returns its log probability with
--mode score. --json and --n_best give JSON for translations and summaries too.
"""

import contextlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from os.path import isfile, samefile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.cli import flags
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths
from rdrop_jax.files.disk import json_ready
from rdrop_jax.training import workdir as workdir_lib

_logger = logging.getLogger(__name__)


def load(
    workdir: str | Path | Sequence[str | Path],
    checkpoint: str = "best",
    mode: str | None = None,
) -> Callable[[Iterable[Any]], list[dict[str, Any]]]:
    """Load a trained model as a function, compiled once per shape.

    Args:
      workdir: folder of the run; of several runs of classification or regression, the
        probabilities or numbers are averaged.
      checkpoint: "best", "last", a step or "average:N".
      mode: "generate" or "score", for language models; None uses the run's setting.

    Returns:
      A function from lists of inputs to lists of answers. For images, arrays [height,
      width, channels] of pixels from 0 to 255, or paths, to ``{"row", "input",
      "label", "id", "probability", "probabilities"}``; the same for texts or pairs of
      texts with classes. ``row`` counts inputs from 0; ``input`` is the text, the pair
      or the path, absent for arrays; ``label`` is the name of the class, or its id as
      text if it has no name; ``probabilities`` maps names to probabilities. For sets of
      labels, ``label`` is a list of names; for numbers, a number; for an empty text,
      None. For labels of words, texts or lists of words to ``{"row", "input",
      "spans"}``. For translation and summarization, texts to ``{"source", "text",
      "score"}``; for language models, texts to ``{"prompt", "text"}`` or ``{"text",
      "log_prob", "perplexity", ...}``.

    Raises:
      InputError: no such run or checkpoint, or inputs that are not a list.
    """
    workdirs = paths.workdirs(workdir)
    config = workdir_lib.read(workdirs[0])
    if mode is not None:
        choose(config, mode)
    from rdrop_jax.cli.run import open_runs  # jax starts here

    run = open_runs(workdirs, checkpoint, config)
    predictor = run.predictor()
    return lambda inputs: list(predictor.run(run.params, check_list(inputs)))


def make_parser() -> flags.Parser:
    """Make the parser of the command line."""
    parser = flags.Parser(prog="rdrop_jax.predict", description=__doc__)
    flags.add_workdirs(parser)
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
    return parser


def main(argv: Sequence[str]) -> None:
    """Parse the command line and stream answers."""
    args, config = flags.parse_run(make_parser(), argv)
    if args.mode is not None:
        choose(config, args.mode)
    if args.n_best is not None:
        ask_for_n_best(config, args.n_best)
    for path in args.input:
        paths.local("--input", path)
    paths.local("--output", args.output)
    refuse_input(args.output, args.input)
    from rdrop_jax.cli.run import open_runs

    run = open_runs(args.workdir, args.checkpoint, config)
    predictor = run.predictor()
    if args.split is None:
        inputs: Iterable[Any] = itertools.chain.from_iterable(
            map(predictor.read, args.input)
        )
    else:
        run.check_split(args.split)
        inputs = predictor.rows(args.split)
    answers = predictor.run(run.params, inputs)
    first = list(itertools.islice(answers, 1))  # if this fails, no output is created
    plain = None if args.json or args.n_best else predictor.text
    try:
        with (
            open(args.output, "w", encoding="utf-8")
            if args.output != "-"
            else contextlib.nullcontext(sys.stdout) as out
        ):
            for number, answer in enumerate(itertools.chain(first, answers), 1):
                for note in answer.get("notes", ()):
                    _logger.warning("input %d: %s", number, note)
                print(line_of(answer, plain, out.encoding), file=out, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"--output: cannot write {args.output!r}: {error.strerror}"
        ) from error


def check_list(inputs: Any) -> Iterable[Any]:
    """Check that a list of inputs was passed, not a single input.

    Returns:
      The inputs.

    Raises:
      InputError: the inputs are a string, bytes, a dict, or not iterable.
    """
    single = isinstance(inputs, str | bytes | dict) or not hasattr(inputs, "__iter__")
    if single:
        raise InputError(
            f"inputs: expected a list, found {inputs!r:.60}. Pass [INPUT]."
        )
    return inputs


def line_of(
    answer: dict[str, Any],
    plain: Callable[[dict[str, Any]], str] | None,
    encoding: str | None,
) -> str:
    """Format an answer as a line of text.

    Args:
      answer: answer of a predictor.
      plain: function that returns an answer's text; None gives JSON.
      encoding: encoding of the output.

    Returns:
      Text in the encoding of the output. In JSON, escapes replace characters that it
      cannot encode, such as bytes of a file name that are not UTF-8: those become lone
      surrogates, from which `os.fsencode` restores the name.

    Raises:
      InputError: a text with a character that the output cannot encode.

    Example:
      >>> print(line_of({"input": "caf" + chr(0xDCE9) + ".png"}, None, "utf-8"))
      {"input": "caf\\udce9.png"}
    """
    answer = json_ready(answer)
    line = json.dumps(answer, ensure_ascii=False) if plain is None else plain(answer)
    try:
        line.encode(encoding or "utf-8")
    except UnicodeEncodeError as error:
        if plain is None:
            return json.dumps(answer)
        raise InputError(
            f"standard output: expected the encoding UTF-8, found {encoding}, which "
            f"lacks {error.object[error.start]!a}. Set PYTHONIOENCODING=utf-8 or use "
            "--output."
        ) from error
    return line


def refuse_input(output: str, inputs: Sequence[str]) -> None:
    """Check that the output is not an input: it would be overwritten, or never end.

    Raises:
      InputError: the output is one of the inputs.
    """
    for path in inputs:
        if isfile(path) and isfile(output) and samefile(path, output):
            raise InputError(
                f"--output: expected another file than those of --input, found {output}"
            )


def choose(config: ConfigDict, mode: str) -> None:
    """Set the prediction mode of a task that has several.

    Raises:
      InputError: the task has only one prediction mode.
    """
    if "predict" not in config.eval:
        raise InputError(f"--mode: task {config.task} has one, found {mode!r}")
    flags.override(config, {"eval.predict": mode})


def ask_for_n_best(config: ConfigDict, n_best: str) -> None:
    """Set the number of answers per input, and a beam of at least that size.

    Raises:
      InputError: not a number, or the task gives only one answer.
    """
    if "n_best" not in config.eval:
        raise InputError(f"--n_best: task {config.task} gives one answer")
    flags.override(config, {"eval.n_best": n_best})
    if config.eval.n_best > config.eval.beam:
        flags.override(config, {"eval.beam": n_best})
