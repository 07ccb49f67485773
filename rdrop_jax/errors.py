"""Exceptions for errors of input or training, as opposed to bugs."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Unusable file, field or argument.

    The message gives the field, the expected and the actual value. Programs print it
    without a traceback and exit with status 2.
    """


class TrainingError(RuntimeError):
    """Training that cannot continue; programs print the message and exit with 1."""


class Stopped(Exception):
    """Graceful stop on request, after saving; programs exit with status 0."""


def nan_outputs() -> InputError:
    """Return the error for a model whose outputs are NaN."""
    return InputError(
        "--checkpoint: expected a model with finite outputs, found NaN. Use another "
        "checkpoint or workdir"
    )


@contextlib.contextmanager
def rust_explained(message: str) -> Iterator[None]:
    """Convert errors of a library written in Rust to `InputError`.

    Such libraries raise plain `Exception`, or ``pyo3_runtime.PanicException``, which is
    a `BaseException` that no module exports.

    Args:
      message: field, expected and actual value.

    Raises:
      InputError: the message, followed by the library's message.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{message}: {text}") from error
