"""Rows of files with named columns: tsv, jsonl or parquet; .gz too. Needs no jax."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError

KINDS = (".tsv", ".jsonl", ".parquet")
_LONGEST = 2**24  # characters of a field


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
      place: what messages call it.
      fields: by column.
    """

    place: str
    fields: dict[str, Any]


def kind(path: Path) -> str:
    """The suffix that says how a file is read, ``.gz`` left out.

    Raises:
      InputError: none of `KINDS`.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in KINDS:
        raise InputError(
            f"{path}: expected one of {', '.join(KINDS)}, found {suffix!r}"
        )
    return suffix


def read(path: Path) -> Iterator[Row]:
    """Rows of a file, in order.

    A tsv has a header and no quoting: a quotation mark is a quotation mark.

    Args:
      path: file.

    Yields:
      Rows.

    Raises:
      InputError: no such file, not such a file, or a row that is cut off.
    """
    how = kind(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    if how == ".parquet":
        yield from _parquet(path)
        return
    try:
        opened: Any = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rb") as file:
            yield from parse(file, how, str(path))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def parse(file: Iterable[bytes], how: str, origin: str) -> Iterator[Row]:
    """Rows of an open tsv or jsonl file."""
    yield from (_tsv if how == ".tsv" else _jsonl)(file, origin)


def text_lines(file: Iterable[bytes], origin: str) -> Iterator[tuple[str, str]]:
    """``(place, line)`` of every line.

    Raises:
      InputError: not UTF-8.
    """
    for number, line in enumerate(file, 1):
        place = f"{origin}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{place}: expected UTF-8: {error}") from error
        yield place, text.rstrip("\r\n")


def _tsv(file: Iterable[bytes], origin: str) -> Iterator[Row]:
    columns: list[str] | None = None
    for place, line in text_lines(file, origin):
        values = split_tsv(line)
        if columns is None:
            columns = values
        elif len(values) != len(columns):
            raise InputError(
                f"{place}: expected {len(columns)} columns, as the first line has, "
                f"found {len(values)}"
            )
        else:
            yield Row(place, dict(zip(columns, values, strict=True)))


def split_tsv(line: str) -> list[str]:
    """Fields of a line of a tsv without quoting."""
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(line), delimiter="\t", quoting=csv.QUOTE_NONE)
    return next(reader, [""])


def _jsonl(file: Iterable[bytes], origin: str) -> Iterator[Row]:
    for place, line in text_lines(file, origin):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: expected JSON, found {line[:40]!r}") from error
        if not isinstance(fields, dict):
            raise InputError(f"{place}: expected a JSON object, found {line[:40]!r}")
        yield Row(place, fields)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path}: parquet needs pyarrow: pip install 'rdrop-jax[parquet]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    yield Row(f"{path}, row {number}", fields)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected parquet, found none: {error}") from error


def inputs(name: str) -> Iterator[Row]:
    """What to predict on: a table, or a text per line; "-" is standard input.

    Each line of standard input, and of files of another kind, is a JSON object, or a
    text with an optional second one after a tab.

    Args:
      name: of the file, or "-".

    Yields:
      Rows; those of plain lines have ``text``, and ``text_b`` after a tab.
    """
    path = Path(name)
    if name != "-" and (path.suffix in (*KINDS, ".gz") or not path.is_file()):
        yield from read(path)
        return
    with sys.stdin.buffer if name == "-" else path.open("rb") as file:
        for place, line in text_lines(file, "--input"):
            if line.startswith("{"):
                yield from _jsonl(io.BytesIO(line.encode()), place)
            else:
                names = ("text", "text_b")
                yield Row(place, dict(zip(names, line.split("\t", 1), strict=False)))
