"""Sentence pairs from parallel text and tables."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rdrop_jax.data import splits, tables
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines

# Text normalization of a run.
Form = Callable[[str], str]
_BREAK = re.compile(r"\s*\n\s*")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs.

    Attributes:
      source: sentences.
      target: translations, one per sentence.
      origin: name of the pairs in error messages.
      notes: messages to the user about changes.
      references: all references of each source, starting with its target; None if the
        target is the only one.
    """

    source: list[str]
    target: list[str]
    origin: str
    notes: tuple[str, ...] = ()
    references: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def select(self, rows: Any) -> "Pairs":
        """Select pairs by their row numbers ``rows``, in that order."""
        source = [self.source[i] for i in rows]
        target = [self.target[i] for i in rows]
        references = self.references
        if references is not None:
            references = [references[i] for i in rows]
        return Pairs(source, target, self.origin, self.notes, references)

    def lowercased(self) -> "Pairs":
        """Convert sources and targets to lower case, without further references."""
        source, target = (
            [text.lower() for text in texts] for texts in (self.source, self.target)
        )
        return replace(self, source=source, target=target, references=None)

    @property
    def targets(self) -> list[list[str]]:
        """Return all references of each source."""
        return self.references or [[text] for text in self.target]


def find(path: Path, source: str, target: str, field: str = "data") -> tuple[Path, ...]:
    """Find the files of a path: one table, or one file per language.

    Args:
      path: path of a table, or the common prefix of ``.de`` and ``.en``.
      source: source language, which is the suffix of the source file.
      target: target language, which is the suffix of the target file.
      field: config field of the path, for error messages.

    Returns:
      One table, or two text files; each may end in ``.gz``.

    Raises:
      InputError: a file is missing.
    """
    if tables.is_table(path):
        return (_there(path, field),)
    return tuple(_there(Path(f"{path}.{name}"), field) for name in (source, target))


def _there(path: Path, field: str) -> Path:
    zipped = path.with_name(path.name + ".gz")
    for candidate in (path, zipped):
        if candidate.is_file() or (tables.is_table(path) and tables.shards(candidate)):
            return candidate
    raise InputError(f"{field}: expected {path} or {zipped.name}, found neither")


def read(
    files: tuple[Path, ...],
    columns: tuple[str, str] = ("source", "target"),
    form: Form | None = None,
    quoting: str = "none",
) -> Pairs:
    """Read pairs from the files that `find` returns.

    Args:
      files: one table or two text files.
      columns: source and target columns of a table; numbers from 0 if it has no header.
      form: text normalization; None is that of training files of this format.
      quoting: one of `tables.QUOTING`.

    Returns:
      The pairs.

    Raises:
      InputError: a line that is not UTF-8 or lacks a column, different line counts, or
        no pairs.
    """
    if len(files) == 2:
        return _read_text(*files, form or form_of(files[0]))
    return _collected(list(texts(files[0], columns, form, quoting)), str(files[0]))


def collect(
    found: Iterable[tables.Row], columns: tuple[str, str], origin: str
) -> Pairs:
    """Collect pairs from rows with named columns.

    Raises:
      InputError: a missing column, or a cell that is not text; names the row.
    """
    rows = [
        [[one_line(text) for text in _texts_of(row, c, "")] for c in columns]
        for row in found
    ]
    return _collected(rows, origin)


def _collected(rows: list[list[list[str]]], origin: str) -> Pairs:
    targets = [each for _, each in rows]
    return _some(
        Pairs(
            # A list of sources is sentences of one text; a list of targets, references.
            [" ".join(source) for source, _ in rows],
            [each[0] for each in targets],
            origin,
            references=targets if any(len(each) > 1 for each in targets) else None,
        )
    )


def _some(pairs: Pairs) -> Pairs:
    if not len(pairs):
        raise InputError(f"{pairs.origin}: expected pairs, found none")
    return pairs


def _read_text(source: Path, target: Path, form: Form) -> Pairs:
    one, other = (
        [form(line) for line in lines.read(path)] for path in (source, target)
    )
    counts = [len(one), len(other)]
    if counts[0] != counts[1]:
        short, long = (source, target) if counts[0] < counts[1] else (target, source)
        raise InputError(
            f"{source}, {target}: expected as many lines in both, found {counts[0]} "
            f"and {counts[1]}: line {min(counts) + 1} of {long.name} has no partner in "
            f"{short.name}"
        )
    return _some(Pairs(one, other, f"{source}, {target.name}"))


def texts(
    path: Path,
    columns: Sequence[str],
    form: Form | None = None,
    quoting: str = "none",
) -> Iterator[list[list[str]]]:
    """Read the texts of some columns for each row of a table.

    Args:
      path: path of the table.
      columns: column names; numbers from 0 for a .csv or .tsv without a header.
      form: text normalization; None is that of training files of this format.
      quoting: one of `tables.QUOTING`.

    Yields:
      One list of texts per column; longer than one if the cell is a list.

    Raises:
      InputError: a missing column, or a cell that is not text; names the row.
    """
    delimited = tables.kind(path) in tables.DELIMITED
    hint = "; for a file without a header give numbers, from 0" if delimited else ""
    header = not (delimited and all(map(str.isdecimal, columns)))
    form = form or form_of(path)
    for row in tables.read(path, header=header, quoting=quoting):
        found = [_texts_of(row, column, hint if header else "") for column in columns]
        yield [[form(text) for text in each] for each in found]


def form_of(train: Path) -> Form:
    """Return the text normalization of a run for training, evaluation and prediction.

    Args:
      train: training file. The result is `stripped` for .csv, .tsv and plain text, and
        `one_line` for other tables.

    Example:
      >>> form_of(Path("train.tsv"))(" two  words "), form_of(Path("a.jsonl"))("a  b")
      ('two  words', 'a b')
    """
    if not tables.is_table(train) or tables.kind(train) in tables.DELIMITED:
        return stripped
    return one_line


def one_line(text: str) -> str:
    """Join the words of a text by single spaces; U+FFFD replaces lone surrogates.

    Example:
      >>> one_line(" two  words ")
      'two words'
    """
    return " ".join(lines.clean(text).split())


def stripped(text: str) -> str:
    """Strip a text and replace each newline in it with a space.

    U+FFFD replaces lone surrogates.

    Example:
      >>> stripped(" two  words\\n of one text ")
      'two  words of one text'
    """
    return _BREAK.sub(" ", lines.clean(text)).strip()


def _texts_of(row: tables.Row, column: str, hint: str) -> list[str]:
    value = row.get(column)
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list) and found and all(isinstance(x, str) for x in found):
        return found
    shown = repr(value)[:60] if column in row else ", ".join(row.fields) + hint
    raise InputError(
        f"{row.place}: expected a text under data.columns {column!r}, found {shown}"
    )


def without_empty(pairs: Pairs) -> Pairs:
    """Drop pairs with an empty source or target, and add a note with their number."""
    kept = [i for i in range(len(pairs)) if pairs.source[i] and pairs.target[i]]
    dropped = len(pairs) - len(kept)
    if not dropped:
        return pairs
    found = pairs.select(kept)
    note = f"{pairs.origin}: {dropped} pairs with an empty source or target dropped"
    return replace(found, notes=(*pairs.notes, note))


def hold_out(
    pairs: Pairs, sizes: Mapping[str, float | None], split_seed: int
) -> dict[str, Pairs]:
    """Hold out splits from training pairs.

    Training pairs that share a source or target with a held-out pair are dropped, so
    that no held-out sentence is trained on.

    Args:
      pairs: all training pairs.
      sizes: number or fraction of the pairs by split, as in `splits.hold_out`.
      split_seed: seed of the draw.

    Returns:
      The held-out splits, and the remaining pairs as "train".

    Raises:
      InputError: a size leaves no training pairs or an empty split.
    """
    rows = splits.hold_out(len(pairs), sizes, split_seed)
    rest = rows.pop("train")
    found = {name: pairs.select(kept) for name, kept in rows.items()}
    sources = {s for split in found.values() for s in split.source}
    targets = {t for split in found.values() for ts in split.targets for t in ts}
    references = pairs.targets
    kept = [
        i
        for i in rest
        if pairs.source[i] not in sources and targets.isdisjoint(references[i])
    ]
    return found | {"train": pairs.select(kept)}
