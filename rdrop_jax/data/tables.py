"""Rows of .tsv, .jsonl and .parquet files, also gzipped. Needs no jax."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdrop_jax import extras
from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs, lines

KINDS = (".tsv", ".jsonl", ".parquet")
# Formats of data and documents whose lines are not texts.
_REFUSED = (
    *(".csv", ".json", ".ndjson", ".jsonlines", ".xml", ".yaml", ".yml", ".html"),
    *(".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".avro", ".h5", ".hdf5"),
    *(".npy", ".npz", ".pkl", ".pickle", ".sqlite", ".safetensors"),
    *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
    *(".pdf", ".docx", ".doc", ".odt", ".rtf", ".jpg", ".jpeg", ".png", ".gif"),
)
# Parquet rows to decode at a time: every row may repeat one long text.
_PARQUET_ROWS = 256


@dataclass(frozen=True)
class Row:
    """Row of a table.

    Attributes:
      place: name of the row in error messages.
      fields: values by column.
    """

    place: str
    fields: dict[str, Any]


def kind(path: Path) -> str:
    """Return the suffix that determines the format of a file, without ``.gz``.

    Raises:
      InputError: the suffix is not in `KINDS`.
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
    """Return True for a table, False for a file of plain lines; case-insensitive."""
    return _suffix(path) in KINDS


def check_text(path: Path, field: str, *, tables: bool = True) -> None:
    """Reject files of known formats other than lines of text.

    Args:
      path: path of the file.
      field: name of the option in error messages.
      tables: also accept files of `KINDS`.

    Raises:
      InputError: a file of an unsupported format.
    """
    suffix = _suffix(path)
    if suffix in _REFUSED or (suffix in KINDS and not tables):
        taken = f"{', '.join(KINDS)}, or a text per line (.txt)" if tables else ".txt"
        raise InputError(
            f"{field}: expected {taken}, each also as .gz, found {path}. Convert the "
            "file, or rename it to .txt if its lines are the texts."
        )


def read(path: Path, *, header: bool = True) -> Iterator[Row]:
    """Read the rows of a file, in order.

    A .tsv file has no quoting; quotation marks are literal.

    Args:
      path: path of the file.
      header: True if the first line of a .tsv names the columns. Otherwise they are
        named "0", "1" and so on, and rows may differ in their number of columns.

    Yields:
      The rows.

    Raises:
      InputError: a missing file, an unsupported format, or a truncated row.
    """
    how = kind(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
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
                f"{place}: expected {len(columns)} columns, as in the first line, "
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
        raise InputError(f"{path}: {extras.missing('pyarrow')}") from error
    lfs.check_not_pointer(path)
    number = size = 0
    try:
        with parquet.ParquetFile(path) as file:
            lines.check_unique(list(file.schema_arrow.names), str(path))
            groups = map(file.metadata.row_group, range(file.num_row_groups))
            stored = sum(group.total_byte_size for group in groups)
            lines.check_unpacked(stored, path, str(path))
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
        raise InputError(f"{path}: cannot be read as Parquet: {error}") from error


def _size(value: Any) -> int:
    """Return the approximate bytes of a value; repeated texts count every time."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def inputs(name: str) -> Iterator[Row | str | tuple[str, ...]]:
    """Read inputs for prediction: a table, or one text per line; "-" is standard input.

    A line of standard input or of a text file is a row if it parses as a JSON object.
    Any other line is a text, optionally followed by a tab and a second text.

    Args:
      name: name of the file, or "-".

    Yields:
      Rows for tables and JSON objects; texts or pairs of texts for plain lines.

    Raises:
      InputError: a missing file, or lines that cannot be parsed.
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
    except (ValueError, RecursionError):  # JSON over the parser's limits
        return True
    return True
