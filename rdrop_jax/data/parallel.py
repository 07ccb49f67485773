"""Sentence pairs from files: parallel text, tsv, JSON lines, each also as .gz."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.errors import InputError

TABLES = (".tsv", ".jsonl")


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Attributes:
      source: sentences.
      target: their translations, as many.
      origin: what messages call them.
      notes: what was done to them, for the user.
    """

    source: list[str]
    target: list[str]
    origin: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def select(self, rows: Any) -> "Pairs":
        """Some of the pairs, in the order of their row numbers ``rows``."""
        source = [self.source[i] for i in rows]
        target = [self.target[i] for i in rows]
        return Pairs(source, target, self.origin, self.notes)


def find(path: Path, source: str, target: str) -> tuple[Path, ...]:
    """The files that a path names, one table or one file per language.

    Args:
      path: a .tsv or .jsonl file, or what comes before ``.de`` and ``.en``.
      source: language, the ending of the file with sentences.
      target: language of their translations.

    Returns:
      One table, or two text files; each may end in ``.gz``.

    Raises:
      InputError: a file is not there.
    """
    if path.name.removesuffix(".gz").endswith(TABLES):
        return (_there(path),)
    return tuple(_there(Path(f"{path}.{language}")) for language in (source, target))


def _there(path: Path) -> Path:
    zipped = path.with_name(path.name + ".gz")
    for candidate in (path, zipped):
        if candidate.is_file():
            return candidate
    raise InputError(f"data: expected {path} or {zipped.name}, found neither")


def read(
    files: tuple[Path, ...], columns: tuple[str, str] = ("source", "target")
) -> Pairs:
    """Pairs from what `find` returns.

    Args:
      files: one table or two text files.
      columns: of source and target in a table; in one without a header, numbers from 0.

    Returns:
      The pairs, lines stripped of white space around them.

    Raises:
      InputError: names the line that is not UTF-8 or has no such column, or the counts
        that differ.
    """
    if len(files) == 2:
        return _read_text(*files)
    rows = _jsonl if files[0].name.removesuffix(".gz").endswith(".jsonl") else _tsv
    pairs = list(rows(files[0], columns))
    return Pairs([s for s, _ in pairs], [t for _, t in pairs], str(files[0]))


def _read_text(source: Path, target: Path) -> Pairs:
    one, other = ([line.strip() for line in lines(path)] for path in (source, target))
    counts = [len(one), len(other)]
    if counts[0] != counts[1]:
        short, long = (source, target) if counts[0] < counts[1] else (target, source)
        raise InputError(
            f"{source}, {target}: expected as many lines in both, found {counts[0]} "
            f"and {counts[1]}: line {min(counts) + 1} of {long.name} has no partner in "
            f"{short.name}"
        )
    return Pairs(one, other, f"{source}, {target.name}")


def lines(path: Path) -> Iterator[str]:
    """Lines of a text file, gzipped or not, without their ends.

    Only newlines part lines: U+2028 and its like stay inside.

    Raises:
      InputError: a line that is not UTF-8, or a damaged archive.
    """
    opener: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        try:
            for number, line in enumerate(file, 1):
                yield decode(line, str(path), number).rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: expected a whole gzip file: {error}") from error


def decode(line: bytes, origin: str, number: int) -> str:
    """A line as text.

    Raises:
      InputError: not UTF-8; names the line.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{origin}: expected UTF-8, found byte {line[error.start]:#04x} at "
            f"position {error.start} of line {number}"
        ) from error


def _jsonl(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{path}: expected JSON in line {number}, found {line[:40]!r}"
            ) from error
        found = [row.get(c) for c in columns] if isinstance(row, dict) else []
        texts = [" ".join(text.split()) for text in found if isinstance(text, str)]
        if len(texts) < len(columns):
            raise InputError(
                f"{path}: expected texts under data.columns {columns[0]!r} and "
                f"{columns[1]!r} in line {number}, found "
                f"{sorted(row) if isinstance(row, dict) else line[:40]!r}"
            )
        yield tuple(texts)


def _tsv(path: Path, columns: tuple[str, str]) -> Iterator[tuple[str, ...]]:
    rows = enumerate((line.split("\t") for line in lines(path)), 1)
    if all(column.isdigit() for column in columns):
        wanted = [int(column) for column in columns]
    else:
        _, header = next(rows, (0, []))
        missing = [column for column in columns if column not in header]
        if missing:
            raise InputError(
                f"{path}: expected data.columns {missing[0]!r} in the header, found "
                f"{header}; for a file without one give numbers, from 0"
            )
        wanted = [header.index(column) for column in columns]
    for number, row in rows:
        if len(row) <= max(wanted):
            raise InputError(
                f"{path}: expected at least {max(wanted) + 1} columns in line "
                f"{number}, found {len(row)}"
            )
        yield tuple(row[i].strip() for i in wanted)


def without_empty(pairs: Pairs) -> Pairs:
    """Pairs whose both sides say something, and a note on how many do not."""
    kept = [i for i in range(len(pairs)) if pairs.source[i] and pairs.target[i]]
    dropped = len(pairs) - len(kept)
    if not dropped:
        return pairs
    found = pairs.select(kept)
    note = f"{pairs.origin}: {dropped} pairs with an empty side dropped"
    return Pairs(found.source, found.target, found.origin, (*pairs.notes, note))


def hold_out(pairs: Pairs, parts: dict[str, int], split_seed: int) -> dict[str, Pairs]:
    """Cuts splits off training pairs.

    A training pair with a source or a target that was held out is dropped, so that no
    held-out sentence was seen.

    Args:
      pairs: all there are.
      parts: split to how many pairs, at most a tenth of them.
      split_seed: draws them.

    Returns:
      The splits, and what is left under "train".
    """
    order = np.random.default_rng(split_seed).permutation(len(pairs))
    found, start = {}, 0
    for name, size in parts.items():
        stop = start + max(1, min(size, len(pairs) // 10))
        found[name] = pairs.select(np.sort(order[start:stop]))
        start = stop
    sources = {s for split in found.values() for s in split.source}
    targets = {t for split in found.values() for t in split.target}
    rest = [
        i
        for i in np.sort(order[start:])
        if pairs.source[i] not in sources and pairs.target[i] not in targets
    ]
    return found | {"train": pairs.select(rest)}
