"""Rows of CSV, TSV, JSON, JSON lines and Parquet files. Needs no jax.

The library ``datasets`` reads the same formats, but changes rows without an error:
docs/own-data.md lists where, and `quoted`, `_jsonl` and `_parquet` name the reasons.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdrop_jax import extras
from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs, lines

KINDS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
DELIMITED = (".csv", ".tsv")
# Quotation marks in .tsv: text, as in GLUE's files, or around fields, as in .csv.
QUOTING = ("none", "csv")
# Formats of data and documents whose lines are not texts.
_REFUSED = (
    *(".jsonlines", ".xml", ".yaml", ".yml", ".html"),
    *(".xlsx", ".xls", ".ods", ".arrow", ".feather", ".orc", ".avro", ".h5", ".hdf5"),
    *(".npy", ".npz", ".pkl", ".pickle", ".sqlite", ".safetensors"),
    *(".zip", ".tar", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
    *(".pdf", ".docx", ".doc", ".odt", ".rtf", ".jpg", ".jpeg", ".png", ".gif"),
)
# Parquet rows to decode at a time: every row may repeat one long text.
_PARQUET_ROWS = 256
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.")
_ABSENT = object()


@dataclass(frozen=True)
class Row:
    """Row of a table.

    Attributes:
      place: name of the row in error messages.
      fields: values by column.
    """

    place: str
    fields: dict[str, Any]

    def get(self, column: str, default: Any = None) -> Any:
        """Return the value of a column; "a.b" is also the field "b" of a column "a"."""
        if column in self.fields:
            return self.fields[column]
        name, _, rest = column.partition(".")
        inner = self.fields.get(name)
        if not rest or not isinstance(inner, dict):
            return default
        return Row(self.place, inner).get(rest, default)

    def __contains__(self, column: str) -> bool:
        return self.get(column, _ABSENT) is not _ABSENT


def kind(path: Path, field: str = "") -> str:
    """Return the suffix that determines the format of a file, without ``.gz``.

    Args:
      path: path of the file.
      field: name of the option in error messages.

    Raises:
      InputError: the suffix is not in `KINDS`.
    """
    suffix = _suffix(path)
    if suffix not in KINDS:
        where = f"{field}: {path}" if field else path
        raise InputError(
            f"{where}: expected one of {', '.join(KINDS)}, found {suffix!r}"
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


def check_format(path: Path, field: str, *, lines: bool) -> None:
    """Accept a table, or also a file of plain lines.

    Raises:
      InputError: another format; the message names ``field``.
    """
    if lines and not is_table(path):
        check_text(path, field)
    else:
        kind(path, field)


def shards(path: Path) -> tuple[Path, ...]:
    """Find the files of a path whose name may contain ``*``, sorted by name.

    Returns:
      The files, or nothing if there is none.

    Raises:
      InputError: files numbered as in ``train-00000-of-00003.parquet`` are not all
        there, or are those of two datasets.
    """
    if path.is_file():
        return (path,)
    if "*" not in path.name:
        return ()
    found = tuple(sorted(p for p in path.parent.glob(path.name) if p.is_file()))
    numbered = [n for file in found if (n := _SHARD.search(file.name))]
    total = max((int(n[2]) for n in numbered), default=0)
    if numbered and sorted(int(n[1]) for n in numbered) != list(range(total)):
        names = ", ".join(file.name for file in found)
        raise InputError(
            f"{path}: expected each of the {total} shards once, found {names:.200}"
        )
    return found


def read(path: Path, *, header: bool = True, quoting: str = "none") -> Iterator[Row]:
    """Read the rows of a file, or of the files of `shards`, in order.

    Args:
      path: path of the file.
      header: True if the first line of a .csv or .tsv names the columns. Otherwise they
        are named "0", "1" and so on, and rows may differ in their number of columns.
      quoting: one of `QUOTING`, for .tsv.

    Yields:
      The rows.

    Raises:
      InputError: a missing file, an unsupported format, or a truncated row.
    """
    how, files = kind(path), shards(path)
    if not files:
        raise InputError(f"{path}: no such file")
    for file in files:
        if how == ".parquet":
            yield from _parquet(file)
        elif how == ".json":
            yield from _json(file)
        elif how in DELIMITED:
            literal = how == ".tsv" and quoting == "none"
            found = (
                _unquoted(file)
                if literal
                else quoted(file, "," if how == ".csv" else "\t")
            )
            yield from _delimited(found, header, literal)
        else:
            yield from _jsonl(lines.placed(lines.read(file), str(file)))


def _unquoted(path: Path) -> Iterator[tuple[str, list[str]]]:
    for place, line in lines.placed(lines.read(path), str(path)):
        yield place, line.split("\t")


def quoted(
    path: Path, delimiter: str, *, names: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Read the place and the values of each row; blank lines are no rows.

    ``datasets`` reads NA and null as no value and 007 as 7, fills short rows, and takes
    the first column of long rows for an index; its errors name no line.

    Args:
      path: path of the file.
      delimiter: character between fields, which may be in quotation marks.
      names: see `lines.read`.

    Raises:
      InputError: an open quotation mark, or text after a closing one.
    """
    csv.field_size_limit(lines.LONGEST)
    found = lines.read(path, names=names, ends=True)
    reader = csv.reader(found, delimiter=delimiter, strict=True)
    while True:
        place = lines.place(str(path), reader.line_num + 1)
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{place}: expected fields with closed and doubled quotation marks, "
                f"found a row that cannot be read: {error}. Enclose the field in "
                "quotation marks, and double those in it."
            ) from error
        if values is None:
            return
        if values:
            yield place, values


def _delimited(
    found: Iterable[tuple[str, list[str]]], header: bool, literal: bool
) -> Iterator[Row]:
    columns: list[str] | None = None
    for place, values in found:
        if not header:
            yield Row(place, {str(i): value for i, value in enumerate(values)})
        elif columns is None:
            columns = values
            lines.check_unique(columns, place)
        elif len(values) != len(columns):
            marked = literal and any(value.startswith('"') for value in values)
            raise InputError(
                f"{place}: expected {len(columns)} columns, as in the first line, "
                f"found {len(values)}"
                + (". Set data.quoting=csv if fields are quoted" if marked else "")
            )
        else:
            yield Row(place, dict(zip(columns, values, strict=True)))


def _json(path: Path) -> Iterator[Row]:
    """Read an array of objects, or JSON lines."""
    text = "\n".join(lines.read(path))
    if not text.lstrip().startswith("["):
        yield from _jsonl(lines.placed(text.split("\n"), str(path)))
        return
    for number, fields in enumerate(lines.parse_json(text, str(path))):
        yield _object(fields, f"{path}, row {number}")


def _object(fields: Any, place: str) -> Row:
    if not isinstance(fields, dict):
        raise InputError(f"{place}: expected a JSON object, found {fields!r:.40}")
    return Row(place, fields)


def _jsonl(found: Iterable[tuple[str, str]]) -> Iterator[Row]:
    """Read one object per line.

    ``datasets`` reads texts that look like dates as dates, rounds integers above 64
    bits, fills missing keys, and refuses lone surrogates; its errors name no line.
    """
    for place, line in found:
        if line.strip():
            yield _object(lines.parse_json(line, place), place)


def _parquet(path: Path) -> Iterator[Row]:
    """Read rows through pyarrow, in bounded memory.

    ``datasets`` returns the same rows through pyarrow, but writes a second copy of the
    data to its cache first, and has no limit on what a file unpacks to.
    """
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
                found = batch.to_pylist()
                size += sum(map(_size, found))
                lines.check_unpacked(size, path, f"{path}, row {number}")
                for fields in found:
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


def inputs(name: str, quoting: str = "none") -> Iterator[Row | str | tuple[str, ...]]:
    """Read inputs for prediction: a table, or one text per line; "-" is standard input.

    A line of standard input or of a text file is a row if it parses as a JSON object.
    Any other line is a text, optionally followed by a tab and a second text.

    Args:
      name: name of the file, or "-".
      quoting: one of `QUOTING`, for .tsv.

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
        yield from read(path, quoting=quoting)
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
