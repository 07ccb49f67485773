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
# Formats of data and documents whose lines are no texts.
_REFUSED = (
    *(".csv", ".json", ".ndjson", ".jsonlines", ".xml", ".yaml", ".yml", ".html"),
    *(".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".avro", ".h5", ".hdf5"),
    *(".npy", ".npz", ".pkl", ".pickle", ".sqlite", ".safetensors"),
    *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
    *(".pdf", ".docx", ".doc", ".odt", ".rtf", ".jpg", ".jpeg", ".png", ".gif"),
)
# Rows of a parquet file that are unpacked at a time: each may repeat one long text.
_PARQUET_ROWS = 256


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
    suffix = _suffix(path)
    if suffix not in KINDS:
        raise InputError(
            f"{path}: expected one of {', '.join(KINDS)}, found {suffix!r}"
        )
    return suffix


def _suffix(path: Path) -> str:
    name = Path(path.name.lower())
    return name.with_suffix("").suffix if name.suffix == ".gz" else name.suffix


def is_table(path: Path) -> bool:
    """Tells tables from files of plain lines; capital letters do not matter."""
    return _suffix(path) in KINDS


def check_text(path: Path, field: str, *, tables: bool = True) -> None:
    """Refuses files of known formats other than lines of text.

    Args:
      path: file.
      field: name of the option in messages.
      tables: also take files of `KINDS`.

    Raises:
      InputError: a file of such a format.
    """
    suffix = _suffix(path)
    if suffix in _REFUSED or (suffix in KINDS and not tables):
        taken = f"{', '.join(KINDS)}, or a text per line (.txt)" if tables else ".txt"
        raise InputError(
            f"{field}: expected {taken}, each also as .gz, found {path}. Convert the "
            "file, or rename it to .txt if its lines are the texts."
        )


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
            lines.check_unique(columns, place)
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
        fields = lines.parse_json(line, place)
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
            lines.check_unique(list(file.schema_arrow.names), str(path))
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            stored = sum(group.total_byte_size for group in groups)
            lines.check_unpacked(stored, path, str(path))
            number = size = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                for fields in batch.to_pylist():
                    size += _size(fields)
                    lines.check_unpacked(size, path, f"{path}, row {number}")
                    yield Row(f"{path}, row {number}", lines.clean_value(fields))
                    number += 1
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, row {number} or one of the {_PARQUET_ROWS} after it: expected "
            f"UTF-8, found other bytes: {error.reason}"
        ) from error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: expected parquet that can be read, found: {error}"
        ) from error


def _size(value: Any) -> int:
    """Return about the bytes of a value; texts of a dictionary count every time."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def inputs(name: str) -> Iterator[Row | str | tuple[str, ...]]:
    """What to predict on: a table, or a text per line; "-" is standard input.

    A line of standard input, or of a text file, is a JSON object if all of it parses as
    one. Any other line is a text, with an optional second one after a tab.

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
    elif is_table(path):
        yield from read(path)
    else:
        check_text(path, "--input")
        yield from _plain(lines.read(path), name)


def _plain(found: Iterable[str], origin: str) -> Iterator[Row | str | tuple[str, ...]]:
    for place, line in lines.placed(found, origin):
        if _is_json(line):
            yield from _jsonl([(place, line)])
        else:
            first, *second = line.split("\t", 1)
            yield (first, *second) if second else first


def _is_json(line: str) -> bool:
    if not line.startswith("{"):
        return False
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):  # JSON, which the reader refuses by its line
        return True
    return True
