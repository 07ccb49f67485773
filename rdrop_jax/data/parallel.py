"""Sentence pairs from files: parallel text, tsv, JSON lines, each also as .gz."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.data import lines, tables
from rdrop_jax.errors import InputError

# A text as a run reads it.
Form = Callable[[str], str]
_BREAK = re.compile(r"\s*\n\s*")


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations.

    Attributes:
      source: sentences.
      target: their translations, as many.
      origin: what messages call them.
      notes: what was done to them, for the user.
      references: all that each source may be compared with, its target the first;
        None where that is all.
    """

    source: list[str]
    target: list[str]
    origin: str
    notes: tuple[str, ...] = ()
    references: list[list[str]] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def select(self, rows: Any) -> "Pairs":
        """Some of the pairs, in the order of their row numbers ``rows``."""
        source = [self.source[i] for i in rows]
        target = [self.target[i] for i in rows]
        references = self.references
        if references is not None:
            references = [references[i] for i in rows]
        return Pairs(source, target, self.origin, self.notes, references)

    @property
    def targets(self) -> list[list[str]]:
        """All references of each source."""
        return self.references or [[text] for text in self.target]


def find(path: Path, source: str, target: str, field: str = "data") -> tuple[Path, ...]:
    """The files that a path names, one table or one file per language.

    Args:
      path: a .tsv, .jsonl or .parquet file, or what comes before ``.de`` and ``.en``.
      source: language, the ending of the file with sentences.
      target: language of their translations.
      field: of the config that names the path, for messages.

    Returns:
      One table, or two text files; each may end in ``.gz``.

    Raises:
      InputError: a file is not there.
    """
    if tables.is_table(path):
        return (_there(path, field),)
    return tuple(_there(Path(f"{path}.{name}"), field) for name in (source, target))


def _there(path: Path, field: str) -> Path:
    zipped = path.with_name(path.name + ".gz")
    for candidate in (path, zipped):
        if candidate.is_file():
            return candidate
    raise InputError(f"{field}: expected {path} or {zipped.name}, found neither")


def read(
    files: tuple[Path, ...],
    columns: tuple[str, str] = ("source", "target"),
    form: Form | None = None,
) -> Pairs:
    """Pairs from what `find` returns.

    Args:
      files: one table or two text files.
      columns: of source and target in a table; in one without a header, numbers from 0.
      form: of the texts; None takes that of training files of this format.

    Returns:
      The pairs.

    Raises:
      InputError: names the line that is not UTF-8 or has no such column, or the counts
        that differ; no pairs at all.
    """
    if len(files) == 2:
        return _read_text(*files, form or form_of(files[0]))
    rows = list(texts(files[0], columns, form))
    targets = [each for _, each in rows]
    return _some(
        Pairs(
            # A source in a list is cut into sentences; targets there are alternatives.
            [" ".join(source) for source, _ in rows],
            [each[0] for each in targets],
            str(files[0]),
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
    path: Path, columns: Sequence[str], form: Form | None = None
) -> Iterator[list[list[str]]]:
    """Texts of each row of a table, under some columns: one, or several in a list.

    Args:
      path: .tsv, .jsonl or .parquet.
      columns: their names; numbers from 0 for a .tsv without a header.
      form: of the texts; None takes that of training files of this format.

    Yields:
      For each column one text or more, in one line each.

    Raises:
      InputError: names the row; no such column, or something else in it.
    """
    tsv = tables.kind(path) == ".tsv"
    hint = "; for a file without a header give numbers, from 0" if tsv else ""
    header = not (tsv and all(map(str.isdecimal, columns)))
    form = form or form_of(path)
    for row in tables.read(path, header=header):
        found = [_texts_of(row, column, hint if header else "") for column in columns]
        yield [[form(text) for text in each] for each in found]


def form_of(train: Path) -> Form:
    """Form of all texts of a run, in training, evaluation and prediction.

    Args:
      train: training file. `one_line` is the form of .jsonl and .parquet, whose texts
        may contain newlines, and `stripped` that of .tsv and of lines of text.

    Example:
      >>> form_of(Path("train.tsv"))(" two  words "), form_of(Path("a.jsonl"))("a  b")
      ('two  words', 'a b')
    """
    if not tables.is_table(train) or tables.kind(train) == ".tsv":
        return stripped
    return one_line


def one_line(text: str) -> str:
    """A text with single spaces between words; U+FFFD replaces lone surrogates.

    Example:
      >>> one_line(" two  words ")
      'two words'
    """
    return " ".join(lines.clean(text).split())


def stripped(text: str) -> str:
    """A text without white space around it; one space replaces each newline in it.

    U+FFFD replaces lone surrogates.

    Example:
      >>> stripped(" two  words\\n of one text ")
      'two  words of one text'
    """
    return _BREAK.sub(" ", lines.clean(text)).strip()


def _texts_of(row: tables.Row, column: str, hint: str) -> list[str]:
    value = row.fields.get(column)
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list) and found and all(isinstance(x, str) for x in found):
        return found
    shown = repr(value)[:60] if column in row.fields else ", ".join(row.fields) + hint
    raise InputError(
        f"{row.place}: expected a text under data.columns {column!r}, found {shown}"
    )


def without_empty(pairs: Pairs) -> Pairs:
    """Pairs whose both sides say something, and a note on how many do not."""
    kept = [i for i in range(len(pairs)) if pairs.source[i] and pairs.target[i]]
    dropped = len(pairs) - len(kept)
    if not dropped:
        return pairs
    found = pairs.select(kept)
    note = f"{pairs.origin}: {dropped} pairs with an empty side dropped"
    return replace(found, notes=(*pairs.notes, note))


def hold_out(pairs: Pairs, parts: dict[str, int], split_seed: int) -> dict[str, Pairs]:
    """Cuts splits off training pairs.

    A training pair with a source or a target that was held out is dropped, so that no
    held-out sentence was seen.

    Args:
      pairs: all there are.
      parts: split to the number of pairs.
      split_seed: draws them.

    Returns:
      The splits, and what is left under "train".
    """
    order = np.random.default_rng(split_seed).permutation(len(pairs))
    found, start = {}, 0
    for name, size in parts.items():
        stop = start + size
        found[name] = pairs.select(np.sort(order[start:stop]))
        start = stop
    sources = {s for split in found.values() for s in split.source}
    targets = {t for split in found.values() for ts in split.targets for t in ts}
    references = pairs.targets
    rest = [
        i
        for i in np.sort(order[start:])
        if pairs.source[i] not in sources and targets.isdisjoint(references[i])
    ]
    return found | {"train": pairs.select(rest)}
