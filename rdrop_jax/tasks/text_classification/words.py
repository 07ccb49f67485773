"""Sentences whose words have labels, in tables and CoNLL files. Needs no jax."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rdrop_jax.data import tables
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.files.lines import clean

# Suffix of CoNLL files for prediction, where a line of .txt is a text.
CONLL = ".conll"
# Start and end of a word in its text.
Place = tuple[int, int]
_DOCUMENT = "-DOCSTART-"
_logger = logging.getLogger(__name__)


def sentence(value: Any, place: str, field: str) -> tuple[str, list[Place]]:
    """Return a text and the places of its words.

    Args:
      value: list of words, which the text joins by spaces; or a text, whose words are
        separated by white space.
      place: name of the row in error messages.
      field: name of the column in error messages.

    Raises:
      InputError: neither a text nor a list of texts.

    Example:
      >>> sentence(["a", "cat"], "row 0", "tokens")
      ('a cat', [(0, 1), (2, 5)])
    """
    if isinstance(value, str):
        text = clean(value)
        return text, [match.span() for match in re.finditer(r"\S+", text)]
    if not isinstance(value, list) or not all(isinstance(w, str) for w in value):
        raise InputError(
            f"{place}: expected a list of words or a text in {field}, found "
            f"{value!r:.60}"
        )
    words = [clean(word) for word in value]
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return " ".join(words), [
        (end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)
    ]


def report_cut(
    first: Int[np.ndarray, " words"], max_length: int, split: str, effect: str
) -> None:
    """Log the number of words that have no tokens.

    Args:
      first: first token of each word, -1 for a word without tokens.
      max_length: maximum number of tokens of a text.
      split: name of the split.
      effect: consequence for these words, which ends the message.
    """
    if cut := int(np.sum(first < 0)):
        _logger.warning(
            "%s: %d of %d words have no tokens, mostly after the first "
            "data.max_length=%d of their sentence: %s",
            *(split, cut, len(first), max_length, effect),
        )


def read_conll(path: Path, text: str, label: str) -> Iterator[Row]:
    """Read files with a word per line, and a blank line between sentences.

    Columns are separated by tabs, or by spaces in lines without tabs. Lines that start
    with -DOCSTART- separate sentences too.

    Args:
      path: path of the file, or of files as in `tables.shards`.
      text: column of the words: a number from 0, or any name for the first column.
      label: column of the labels: a number, or any name for the last column. It is
        absent from files of one column.

    Yields:
      A row for each sentence, with lists of words and labels.

    Raises:
      InputError: a line with another number of columns than the first.
    """
    for file in tables.shards(path):
        yield from _sentences(file, text, label)


def _sentences(path: Path, text: str, label: str) -> Iterator[Row]:
    width, found, start = 0, list[list[str]](), ""
    for place, line in lines.placed(lines.read(path), str(path)):
        fields = line.split("\t") if "\t" in line else line.split(" ")
        fields = [field.strip() for field in fields if field or "\t" in line]
        if not any(fields) or fields[0] == _DOCUMENT:
            if found:
                yield _row(found, start, text, label)
            found = []
            continue
        width = width or len(fields)
        if len(fields) != width:
            raise InputError(
                f"{place}: expected {width} columns, as in the first line with a word, "
                f"found {len(fields)}: {line!r:.60}. Separate sentences by blank "
                "lines, and remove comments."
            )
        start = start if found else place
        found.append(fields)
    if found:
        yield _row(found, start, text, label)


def _row(found: list[list[str]], place: str, text: str, label: str) -> Row:
    columns = {text: _column(text, 0, found, f"{place}: data.columns.text")}
    if len(found[0]) > 1:
        last = len(found[0]) - 1
        where = f"{place}: data.columns.label"
        columns[label] = _column(label, last, found, where)
    return Row(place, dict(columns))


def _column(name: str, usual: int, found: list[list[str]], where: str) -> list[str]:
    number = int(name) if re.fullmatch("[0-9]{1,9}", name) else usual
    if number >= len(found[0]):
        raise InputError(
            f"{where}: expected a column from 0 to {len(found[0]) - 1}, found {number}"
        )
    return [fields[number] for fields in found]
