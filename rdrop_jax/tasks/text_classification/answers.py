"""Inputs and answers of prediction for texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import expit, softmax

from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files.lines import clean
from rdrop_jax.tasks.classification import class_answer
from rdrop_jax.tasks.text_classification import scores
from rdrop_jax.tasks.text_classification.texts import Columns


def as_row(item: Any, named: Columns, place: str) -> Row:
    """Convert a text, a pair or a dict to a row with the columns of the data.

    Raises:
      InputError: the number of texts is wrong, or the item has another type.
    """
    if isinstance(item, Row):
        return item
    if isinstance(item, dict):
        return Row(place, item)
    if not isinstance(item, str | list | tuple):
        raise InputError(f"{place}: expected a text, found {item!r}")
    if named.words:  # a list of words, or a line that has a tab
        return Row(
            place, {named.text: " ".join(item) if isinstance(item, tuple) else item}
        )
    parts = [item] if isinstance(item, str) else list(item)
    names = [name for name in (named.text, named.text_b) if name]
    if isinstance(item, str) and not item.strip():  # a blank line, also for text pairs
        parts = [item] * len(names)
    if len(parts) != len(names):
        raise InputError(
            f"{place}: expected {len(names)} text{'s' * (len(names) > 1)}, "
            f"{', '.join(names)}, found {len(parts)}"
        )
    return Row(place, dict(zip(names, parts, strict=True)))


def is_blank(row: Row, named: Columns) -> bool:
    """Return True if a text of the row is empty or only white space."""
    texts = [row.get(name) for name in (named.text, named.text_b) if name]
    if named.words and texts == [[]]:
        return True
    return any(isinstance(text, str) and not text.strip() for text in texts)


def shown_input(row: Row, named: Columns) -> str | list[str]:
    """Return the text of a row, or its two texts, for display in answers."""
    texts = [row.get(name, "") for name in (named.text, named.text_b) if name]
    if named.words and isinstance(texts[0], list):
        texts = [" ".join(map(str, texts[0]))]
    shown = [clean(str(text)) for text in texts]
    return shown if len(shown) > 1 else shown[0]


def as_answer(
    outputs: Float[np.ndarray, " outputs"], labels: str, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Convert the outputs of one text to a JSON-ready dict."""
    if labels == "numbers":
        return {"label": round(float(outputs[0]), 6)}
    chances = expit(outputs) if labels == "multilabel" else softmax(outputs)
    each = {name: round(float(p), 6) for name, p in zip(classes, chances, strict=True)}
    if labels == "multilabel":
        chosen = [name for name, z in zip(classes, outputs, strict=True) if z > 0]
        return {"label": chosen, "probabilities": each}
    return class_answer(np.asarray(chances), classes)


def span_answer(
    text: str,
    words: Sequence[tuple[int, int]],
    outputs: Float[np.ndarray, "words outputs"],
    seen: Bool[np.ndarray, " words"],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """Convert the outputs of the words of one text to a JSON-ready dict of spans.

    Args:
      text: the text.
      words: start and end of each word in the text.
      outputs: logits of each word.
      seen: words that the model has seen; other words are in no span.
      classes: class names by id.

    Returns:
      ``spans``, each with ``label``, ``start`` and ``end`` in the text, ``text``, and
      ``score``, the mean probability of its words; ``notes`` if words were not seen.
    """
    best = np.max(softmax(outputs, axis=-1), axis=-1)
    tags = scores.best_tags(outputs, seen, classes)
    found = [
        {
            "label": span.label,
            "start": (start := words[span.start][0]),
            "end": (end := words[span.end - 1][1]),
            "text": text[start:end],
            "score": round(float(np.mean(best[span.start : span.end])), 6),
        }
        for span in scores.spans(tags.tolist(), classes)
    ]
    cut = int(np.sum(~seen))
    note = f"{cut} words after the maximum length or without tokens: no label"
    return {"spans": found} | ({"notes": [note]} if cut else {})
