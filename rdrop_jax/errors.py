"""What goes wrong through input, not through a bug."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """A file, field or argument that cannot be used.

    The message names the field, what was expected and what was found; programs print
    it without a traceback and exit with 2.
    """


class TrainingError(RuntimeError):
    """A run that cannot go on; programs print the message and exit with 1."""


class Stopped(Exception):
    """A run that was asked to end and has saved; programs exit with 0."""


@contextlib.contextmanager
def rust_explained(message: str) -> Iterator[None]:
    """Raise an `InputError` where a library written in Rust fails.

    Such libraries raise plain `Exception`, or ``pyo3_runtime.PanicException``, which is
    a `BaseException` that no module exports.

    Args:
      message: the field, what was expected and what was found.

    Raises:
      InputError: the message, followed by that of the library.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{message}: {text}") from error
