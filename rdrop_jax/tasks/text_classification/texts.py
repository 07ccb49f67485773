"""Labelled texts in memory, read from named columns. Needs no jax."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rdrop_jax import config as config_lib
from rdrop_jax.data.labels import class_ids, class_name, is_missing
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files.lines import clean
from rdrop_jax.tasks.text_classification import words as words_lib

LABELS = ("classes", "multilabel", "numbers", "words")


@dataclass(frozen=True)
class Columns:
    """Column names of labelled texts.

    Attributes:
      text: column of the text, or of the first text of a pair.
      text_b: column of the second text; empty for single texts.
      label: column of the label; rows without a label are unlabelled.
      words: True if each word of the text has a label.
    """

    text: str = "text"
    text_b: str = ""
    label: str = "label"
    words: bool = False


@dataclass(frozen=True)
class Texts:
    """Labelled texts of one split.

    Attributes:
      first: text, or first text of a pair, of each row.
      second: second text of each row; None for single texts.
      labels: class name, number, list of names, or None of each row.
      places: names of the rows in error messages.
      words: start and end of each word in its text; None unless words have labels.
      left_out: number of rows that have no word.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: Sequence[Any]
    places: Sequence[str]
    words: Sequence[Sequence[words_lib.Place]] | None = None
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.first)

    def __repr__(self) -> str:
        return f"Texts({len(self)})"

    def take(self, rows: Int[np.ndarray, " kept"]) -> "Texts":
        """Select some of the rows."""
        kept = rows.tolist()

        def of(values: Sequence[Any]) -> list[Any]:
            return [values[row] for row in kept]

        second = None if self.second is None else of(self.second)
        words = None if self.words is None else of(self.words)
        return replace(
            self,
            first=of(self.first),
            second=second,
            labels=of(self.labels),
            places=of(self.places),
            words=words,
        )


def collect(rows: Iterable[Row], columns: Columns, *, labelled: bool = True) -> Texts:
    """Collect texts and labels from rows.

    Args:
      rows: rows with named columns.
      columns: columns to read.
      labelled: True requires a column of labels.

    Returns:
      The texts.

    Raises:
      InputError: a missing column, an empty text, or a value that is not a text.
    """
    if columns.words:
        return _collect_words(rows, columns, labelled)
    first: list[str] = []
    second: list[str] = []
    labels, places = [], []
    for row in rows:
        first.append(_text(row, columns.text, "data.columns.text"))
        if columns.text_b:
            second.append(_text(row, columns.text_b, "data.columns.text_b"))
        if labelled:
            _check_column(row, columns.label, "data.columns.label")
        label = row.get(columns.label)
        labels.append(None if is_missing(label) else label)
        places.append(row.place)
    return Texts(first, second if columns.text_b else None, labels, places)


def _collect_words(rows: Iterable[Row], columns: Columns, labelled: bool) -> Texts:
    first: list[str] = []
    words: list[list[words_lib.Place]] = []
    labels, places, empty = [], [], 0
    for row in rows:
        for column, field in ((columns.text, "text"), (columns.label, "label")):
            if labelled or field == "text":
                _check_column(row, column, f"data.columns.{field}")
        value, label = row.get(columns.text), row.get(columns.label)
        text, found = words_lib.sentence(value, row.place, columns.text)
        if not found:
            empty += 1
            continue
        label = label.split() if isinstance(label, str) else label
        if label is None or (isinstance(label, list) and all(map(is_missing, label))):
            label = None
        elif not isinstance(label, list) or len(label) != len(found):
            count = len(label) if isinstance(label, list) else repr(label)
            raise InputError(
                f"{row.place}: expected a label in {columns.label!r} for each of "
                f"{len(found)} words in {columns.text!r}, found {count}"
            )
        first.append(text)
        words.append(found)
        labels.append(label)
        places.append(row.place)
    return Texts(first, None, labels, places, words, empty)


def _check_column(row: Row, column: str, field: str) -> None:
    if column not in row:
        hint = config_lib.suggest(column, row.fields)
        table = re.search(r"\.[ct]sv\b", row.place)
        header = "".join(map(str, row.fields)) if len(row.fields) == 1 else ""
        if table and re.search(r"[;,\t|]", header):
            hint += " Separate the fields of .csv by commas, of .tsv by tabs."
        raise InputError(
            f"{row.place}: expected a column {column!r} ({field}), found "
            f"{', '.join(map(str, row.fields))}.{hint}"
        )


def groups_of(rows: Iterable[Row], column: str) -> dict[str, Any]:
    """Return the values of ``data.columns.group`` by the places of the rows."""
    found = {}
    for row in rows:
        _check_column(row, column, "data.columns.group")
        found[row.place] = row.get(column)
    return found


def _text(row: Row, column: str, field: str) -> str:
    _check_column(row, column, field)
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"{row.place}: expected a text in {column!r} ({field}), found {text!r:.60}"
        )
    return clean(text)


def find_classes(texts: Texts, labels: str) -> tuple[str, ...]:
    """Return the sorted class names of all labels of a split.

    Args:
      texts: the training split.
      labels: "classes", "multilabel" or "words".

    Returns:
      Class names; numbers are sorted numerically.

    Raises:
      InputError: too few classes, or a label that is neither a name nor a number.
    """
    if not len(texts):
        raise InputError("expected training rows, found none")
    found: set[str] = set()
    for label, place in zip(texts.labels, texts.places, strict=True):
        if label is not None:
            found.update(_names(label, labels, place))
    if len(found) < (1 if labels == "multilabel" else 2):
        raise InputError(
            "data.columns.label: expected at least two classes in the training rows, "
            f"found {sorted(found)}"
        )
    numeric = all(re.fullmatch("-?[0-9]{1,1000}", name) for name in found)
    return tuple(sorted(found, key=lambda name: (int(name) if numeric else 0, name)))


def _names(label: Any, labels: str, place: str) -> list[str]:
    """Return the class names of a label, which may be a list or comma-separated."""
    if labels == "multilabel" and isinstance(label, str):
        label = [part for part in label.split(",") if part.strip()]
    several = labels in ("multilabel", "words") and isinstance(label, list)
    found = label if several else [label]
    return [class_name(name, place) for name in found]


def encode_labels(
    texts: Texts, labels: str, classes: Sequence[str]
) -> tuple[
    Int[np.ndarray, " ids"] | Float[np.ndarray, "rows *labels"],
    Float[np.ndarray, " rows"],
]:
    """Encode labels as arrays.

    Args:
      texts: texts of a split.
      labels: one of `LABELS`.
      classes: class names by id.

    Returns:
      Class ids [rows], 0/1 [rows, classes], numbers [rows] or class ids [words of all
      rows], with 0 for unlabelled rows; and a mask [rows] that is 1 for labelled rows,
      else 0.

    Raises:
      InputError: an unknown class, or not a number; the message names the row.
    """
    ids = class_ids(classes)
    if labels == "words":
        return _encode_words(texts, ids)
    shape = (len(texts), len(classes)) if labels == "multilabel" else (len(texts),)
    found = np.zeros(shape, np.int32 if labels == "classes" else np.float32)
    there = np.zeros(len(texts), np.float32)
    for row, (label, place) in enumerate(zip(texts.labels, texts.places, strict=True)):
        if label is None:
            continue
        there[row] = 1.0
        if labels == "numbers":
            found[row] = _number(label, place)
            continue
        for name in _names(label, labels, place):
            where = _class_id(name, ids, place)
            found[row] = where if labels == "classes" else found[row]
            if labels == "multilabel":
                found[row, where] = 1.0
    return found, there


def _class_id(name: str, ids: dict[str, int], place: str) -> int:
    if name not in ids:
        raise InputError(
            f"{place}: expected a label that occurs in the training rows: "
            f"{', '.join(ids)}, found {name!r}"
        )
    return ids[name]


def _encode_words(
    texts: Texts, ids: dict[str, int]
) -> tuple[Int[np.ndarray, " words"], Float[np.ndarray, " rows"]]:
    assert texts.words is not None
    found: list[int] = []
    rows = zip(texts.first, texts.words, texts.labels, texts.places, strict=True)
    for text, words, labels, row in rows:
        for number, ((start, end), label) in enumerate(
            zip(words, labels or [None] * len(words), strict=True)
        ):
            if labels is None:
                found.append(0)
            else:
                place = f"{row}, word {number} {text[start:end]!r}"
                found.append(_class_id(class_name(label, place), ids, place))
    there = [float(labels is not None) for labels in texts.labels]
    return np.asarray(found, np.int32), np.asarray(there, np.float32)


def _number(label: Any, place: str) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if abs(number) > np.finfo(np.float32).max:
        number = math.inf
    if not math.isfinite(number) or isinstance(label, bool):
        raise InputError(f"{place}: expected a number as label, found {label!r:.60}")
    return number
