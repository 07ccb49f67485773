"""Console script: ``rdrop-jax train ...`` is ``python -m rdrop_jax.train ...``."""

import difflib
import importlib
import sys
from typing import NamedTuple

from rdrop_jax import __version__, extras


class Program(NamedTuple):
    """Program of the command line.

    Attributes:
      module: module with its ``main``.
      summary: what it does, in one line.
      extras: extras that it needs.
    """

    module: str
    summary: str
    extras: tuple[str, ...] = ("train",)


PROGRAMS = {
    "train": Program("rdrop_jax.cli.train", "train a model, or resume a run"),
    "evaluate": Program("rdrop_jax.cli.evaluate", "score a checkpoint of a run"),
    "predict": Program("rdrop_jax.cli.predict", "predict with a trained model"),
    "export": Program("rdrop_jax.cli.export", "write a model for other libraries"),
    "prepare": Program("rdrop_jax.cli.prepare", "convert a dataset for training"),
    "compile": Program(
        "rdrop_jax.cli.compile", "count memory and operations for a GPU or TPU"
    ),
    "compare": Program(
        "rdrop_jax.compare.program",
        "train with and without R-Drop, and report whether it helps",
        ("train", "report"),
    ),
}


def _usage() -> str:
    lines = (f"  {name:10}{program.summary}" for name, program in PROGRAMS.items())
    return (
        "usage: rdrop-jax PROGRAM ...\n\nprograms:\n"
        + "\n".join(lines)
        + "\n\nRun `rdrop-jax PROGRAM --help` for the flags of a program."
    )


def main() -> None:
    """Run the program that the first argument names; exit with its status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(_usage())
        return
    if name == "--version":
        print(f"rdrop-jax {__version__}")
        return
    if name not in PROGRAMS:
        close = difflib.get_close_matches(name, PROGRAMS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        known = ", ".join(PROGRAMS)
        message = f"error: program: expected one of {known}, got {name!r}.{hint}"
        print(message, file=sys.stderr)
        raise SystemExit(2)
    del sys.argv[1]
    with extras.explained("__main__", *PROGRAMS[name].extras):
        from rdrop_jax.cli import process

        program = importlib.import_module(PROGRAMS[name].module)
    process.run(program.main)
