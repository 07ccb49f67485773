"""Lines of UTF-8 text from files, gzipped or not, and from streams. Needs no jax."""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.runtime import lfs


def read(path: Path) -> Iterator[str]:
    """Lines of a text file, gunzipped where its name ends in .gz, without their ends.

    Only newlines part lines: U+2028 and its like stay inside.

    Raises:
      InputError: a file that cannot be read or is damaged, a git-lfs pointer, or a line
        that is not UTF-8.
    """
    lfs.check(path)
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield from decoded(file, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def decoded(file: Iterable[bytes], origin: str) -> Iterator[str]:
    """Lines of an open file as text, without their ends.

    Args:
      file: lines of bytes; the first may begin with a byte order mark.
      origin: what messages call it.

    Raises:
      InputError: a line that is not UTF-8; names it.
    """
    for number, line in enumerate(file, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{place(origin, number)}: expected UTF-8, found byte "
                f"{line[error.start]:#04x} at position {error.start}"
            ) from error
        yield text.rstrip("\r\n")


def place(origin: str, number: int) -> str:
    """What messages call a line; the first is 1."""
    return f"{origin}, line {number}"


def placed(lines: Iterable[str], origin: str) -> Iterator[tuple[str, str]]:
    """``(place, line)`` of every line."""
    for number, line in enumerate(lines, 1):
        yield place(origin, number), line
