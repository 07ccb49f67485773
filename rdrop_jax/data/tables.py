"""Rows of files with named columns: tsv, jsonl or parquet; .gz too. Needs no jax."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdrop_jax.data import lines
from rdrop_jax.errors import InputError
from rdrop_jax.runtime import lfs

KINDS = (".tsv", ".jsonl", ".parquet")


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


def read(path: Path, *, header: bool = True) -> Iterator[Row]:
    """Rows of a file, in order.

    A tsv has no quoting: a quotation mark is a quotation mark.

    Args:
      path: file.
      header: the first line of a tsv names the columns; else they are "0", "1" and so
        on, and rows may differ in how many they have.

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
    found = lines.placed(lines.read(path), str(path))
    yield from _tsv(found, header) if how == ".tsv" else _jsonl(found)


def _tsv(found: Iterable[tuple[str, str]], header: bool) -> Iterator[Row]:
    columns: list[str] | None = None
    for place, line in found:
        values = line.split("\t")
        if not header:
            yield Row(place, {str(i): value for i, value in enumerate(values)})
        elif columns is None:
            columns = values
        elif len(values) != len(columns):
            raise InputError(
                f"{place}: expected {len(columns)} columns, as the first line has, "
                f"found {len(values)}"
            )
        else:
            yield Row(place, dict(zip(columns, values, strict=True)))


def _jsonl(found: Iterable[tuple[str, str]]) -> Iterator[Row]:
    for place, line in found:
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
    lfs.check(path)
    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    yield Row(f"{path}, row {number}", fields)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: expected parquet, found none: {error}") from error


def inputs(name: str) -> Iterator[Row | str | tuple[str, ...]]:
    """What to predict on: a table, or a text per line; "-" is standard input.

    Each line of standard input, and of files of another kind, is a JSON object, or a
    text with an optional second one after a tab.

    Args:
      name: of the file, or "-".

    Yields:
      Rows of tables and objects; texts, or pairs of them, of plain lines.

    Raises:
      InputError: no such file, or lines that cannot be read.
    """
    path = Path(name)
    if name == "-":
        yield from _plain(lines.decoded(sys.stdin.buffer, "--input"), "--input")
    elif not path.is_file():
        raise InputError(f"--input: no file {name!r}")
    elif path.name.removesuffix(".gz").endswith(KINDS):
        yield from read(path)
    else:
        yield from _plain(lines.read(path), name)


def _plain(found: Iterable[str], origin: str) -> Iterator[Row | str | tuple[str, ...]]:
    for place, line in lines.placed(found, origin):
        if line.startswith("{"):
            yield from _jsonl([(place, line)])
        else:
            first, *second = line.split("\t", 1)
            yield (first, *second) if second else first
