"""Normalization of class names for training, evaluation and prediction."""

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.files.lines import clean


def is_missing(label: Any) -> bool:
    """Return True for a missing label: None, blank text or NaN."""
    if isinstance(label, str):
        return not label.strip()
    return label is None or (isinstance(label, float) and math.isnan(label))


def normal(name: str) -> str:
    """Normalize a name to NFC and strip white space.

    U+FFFD replaces lone surrogates, which represent non-UTF-8 bytes of a file name.

    Example:
      >>> normal(" cat ")
      'cat'
    """
    return unicodedata.normalize("NFC", clean(name)).strip()


def class_name(label: Any, place: str) -> str:
    """Normalize a label to a class name (see `normal`).

    Args:
      label: text, integer, boolean, or a float without a fraction, as pandas writes
        integers of a column with missing values.
      place: name of the row in error messages.

    Returns:
      The class name.

    Raises:
      InputError: a number with a fraction, or neither text nor a number.

    Example:
      >>> class_name(" good ", "line 1"), class_name(1.0, "line 2")
      ('good', '1')
    """
    if isinstance(label, str) and label.strip():
        return normal(label)
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float):
        if label.is_integer():
            return str(int(label))
        raise InputError(
            f"{place}: expected the name of a class, found {label!r}, a number with a "
            "fraction. Set data.labels=numbers, or write the class as text."
        )
    raise InputError(f"{place}: expected the name of a class, found {label!r}")


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """Map normalized class names to ids.

    Raises:
      InputError: two names that are equal after normalization.
    """
    ids: dict[str, int] = {}
    for i, name in enumerate(classes):
        key = normal(name)
        if key in ids:
            raise InputError(
                f"data.classes: expected distinct names, found {classes[ids[key]]!r}"
                f" and {name!r}. Train a new run: white space is no part of a name."
            )
        ids[key] = i
    return ids
