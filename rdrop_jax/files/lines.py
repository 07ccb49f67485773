"""Lines of UTF-8 text from plain and gzipped files and from streams. Needs no jax."""

import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs

# Maximum number of bytes in a line.
LONGEST = 64 * 2**20
# Limit of decompressed bytes: this constant plus compressed size times the ratio.
_UNPACKED, _RATIO = 64 * 2**20, 250
_LONE = re.compile("[\ud800-\udfff]")


def read(path: Path, *, names: bool = False, ends: bool = False) -> Iterator[str]:
    """Read the lines of a text file; decompress .gz files.

    Only newlines separate lines; U+2028, U+0085 and form feeds do not.

    Args:
      path: path of the file.
      names: True if lines contain file names. Bytes that are not UTF-8 then become lone
        surrogates, as in Python's paths.
      ends: True keeps the line ends.

    Raises:
      InputError: an unreadable or corrupt file, a git-lfs pointer, a line that is not
        UTF-8 or too long, or a gzip file with an implausible compression ratio.
    """
    lfs.check_not_pointer(path)
    zipped = path.suffix.lower() == ".gz"
    opener: Callable[..., Any] = gzip.open if zipped else open
    try:
        most = unpacked_limit(path) if zipped else None
        with opener(path, "rb") as file:
            yield from decoded(file, str(path), most, names=names, ends=ends)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def unpacked_limit(path: Path) -> int:
    """Return the maximum decompressed size of a compressed file, in bytes.

    Raises:
      OSError: the file is missing.
    """
    return _UNPACKED + _RATIO * path.stat().st_size


def check_unpacked(size: int, path: Path, where: str) -> None:
    """Reject content that is much larger than compressed text decompresses to.

    Args:
      size: bytes of the content so far.
      path: path of the compressed file.
      where: name of the content in error messages.

    Raises:
      InputError: more bytes than `unpacked_limit`.
    """
    if size > (most := unpacked_limit(path)):
        raise InputError(
            f"{where}: expected content that unpacks to at most {most} bytes, found "
            "more. Write the file without compression if it is yours."
        )


def decoded(
    file: Any,
    origin: str,
    most: int | None = None,
    *,
    names: bool = False,
    ends: bool = False,
) -> Iterator[str]:
    """Decode the lines of an open file.

    Args:
      file: binary file, which may begin with a byte order mark.
      origin: name of the file in error messages.
      most: maximum total bytes; None sets no limit.
      names: see `read`.
      ends: see `read`.

    Raises:
      InputError: a line that is not UTF-8 or too long; the message names it.
    """
    total, errors = 0, "surrogateescape" if names else "strict"
    read_line = functools.partial(file.readline, LONGEST + 1)
    for number, line in enumerate(iter(read_line, b""), 1):
        where = place(origin, number)
        total += len(line)
        if len(line) > LONGEST:
            raise InputError(
                f"{where}: expected at most {LONGEST} bytes in a line, found more. "
                "Split the line."
            )
        if most is not None and total > most:
            raise InputError(
                f"{where}: expected text that unpacks to at most {most} bytes, found "
                "more. Unpack the file first if it is yours."
            )
        _check_encoding(line, where, number == 1)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{where}: expected UTF-8, found byte "
                f"{line[error.start]:#04x} at position {error.start}. Save the file as "
                "UTF-8"
            ) from error
        yield text if ends else text.rstrip("\r\n")


def _check_encoding(line: bytes, where: str, first: bool) -> None:
    marked = first and line.startswith((b"\xff\xfe", b"\xfe\xff"))
    if marked or 4 * line.count(0) > max(len(line), 4):
        raise InputError(
            f"{where}: expected UTF-8, found UTF-16 or UTF-32. Convert the file: "
            "`iconv -f UTF-16 -t UTF-8`."
        )
    if first and not line.endswith(b"\n") and b"\r" in line.rstrip(b"\r"):
        raise InputError(
            f"{where}: expected lines that end in LF or CRLF, found CR alone. Convert "
            "the file: `tr '\\r' '\\n'`."
        )


def clean(text: str) -> str:
    """Replace every lone surrogate in a text with U+FFFD.

    JSON allows lone surrogates; UTF-8 and tokenizers do not.

    Example:
      >>> clean("cut " + chr(0xD83D))
      'cut \ufffd'
    """
    if text.isascii() or not _LONE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def clean_value(value: Any) -> Any:
    """Apply `clean` to every text in a JSON value."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return [clean_value(item) for item in value]
    if isinstance(value, dict):
        return {clean_value(key): clean_value(item) for key, item in value.items()}
    return value


def parse_json(line: str, where: str) -> Any:
    """Parse a JSON value and clean its texts.

    Args:
      line: text of a line, or of a file.
      where: name of the line or file in error messages.

    Raises:
      InputError: invalid JSON, a duplicate key, or too deep nesting.
    """
    try:
        return clean_value(
            json.loads(
                line, object_pairs_hook=lambda pairs: _unique_pairs(pairs, where)
            )
        )
    except InputError:
        raise
    except json.JSONDecodeError as error:
        at = place(where, error.lineno) if "\n" in line else where
        shown = line.split("\n")[error.lineno - 1]
        raise InputError(f"{at}: expected JSON, found {shown[:40]!r}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(
            f"{where}: expected JSON with integers of at most 4300 digits, found "
            f"{line[:40]!r}"
        ) from error
    except RecursionError as error:
        raise InputError(
            f"{where}: expected JSON that is nested less deeply, found {line[:40]!r}"
        ) from error


def _unique_pairs(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        check_unique([key for key, _ in pairs], where)
    return found


def check_unique(columns: list[str], where: str) -> None:
    """Reject duplicate column names.

    Raises:
      InputError: a duplicate column.
    """
    twice = next((c for c in columns if columns.count(c) > 1), None)
    if twice is not None:
        raise InputError(
            f"{where}: expected every column once, found {twice!r} "
            f"{columns.count(twice)} times. Rename or remove one of them."
        )


def place(origin: str, number: int) -> str:
    """Return the name of a line in error messages; line numbers start at 1."""
    return f"{origin}, line {number}"


def placed(lines: Iterable[str], origin: str) -> Iterator[tuple[str, str]]:
    """Yield ``(place, line)`` for every line."""
    for number, line in enumerate(lines, 1):
        yield place(origin, number), line
