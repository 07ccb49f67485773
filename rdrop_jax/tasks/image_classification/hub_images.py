"""Labelled images of the Hugging Face Hub. Needs no jax."""

from typing import Any

import numpy as np

from rdrop_jax.data import hub
from rdrop_jax.errors import InputError


class HubImages:
    """Images of one split, as bytes of their files, and labels.

    Args:
      found: the dataset.
      split: a split of the dataset.
      columns: column of the images and column of the labels.
    """

    def __init__(self, found: hub.Loaded, split: str, columns: tuple[str, str]) -> None:
        from datasets import Image

        image, label = self._columns = columns
        table = found.splits[split].select_columns([image, label])
        self._source = table.cast_column(image, Image(decode=False))
        self._name = f"{found.text}, {split}"
        self.labels = _class_ids(table, label)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = self._source[row][self._columns[0]] or {}
        return {
            "image": image.get("bytes") or image.get("path"),
            "label": self.labels[row],
        }

    def __repr__(self) -> str:
        return f"HubImages({self._name})"

    def name(self, row: int) -> str:
        """Return the name of a row in error messages."""
        return f"{self._name}, row {row}"


def columns(found: hub.Loaded, split: str, image: str, label: str) -> tuple[str, str]:
    """Return the column of the images and the column of the labels.

    Args:
      found: the dataset.
      split: a split of the dataset.
      image: ``data.columns.image``; "" takes the first column of images.
      label: ``data.columns.label``; "" takes the column of classes named ``label``, or
        the first one.

    Raises:
      InputError: the dataset has no such column.
    """
    from datasets import ClassLabel, Image

    features = found.splits[split].features
    there = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
    images = [name for name, f in features.items() if isinstance(f, Image)]
    labels = [name for name, f in features.items() if isinstance(f, ClassLabel)]
    labels.sort(key=lambda name: name != "label")
    integers = [n for n, f in features.items() if "int" in getattr(f, "dtype", "")]
    chosen = []
    for field, named, usual, allowed in (
        ("image", image, images, images),
        ("label", label, labels, [*labels, *integers]),
    ):
        if named not in ("", *allowed) or not (named or usual):
            kind = "images" if field == "image" else "classes or integers"
            raise InputError(
                f"data.columns.{field}: expected a column of {kind} of {found.text}: "
                f"{there}, found {repr(named) if named else 'none'}"
            )
        chosen.append(named or usual[0])
    return chosen[0], chosen[1]


def groups(found: hub.Loaded, split: str, column: str) -> dict[str, Any]:
    """Return the values of a column by the names of the rows.

    Raises:
      InputError: the dataset has no such column.
    """
    table = found.splits[split]
    if column not in table.column_names:
        raise InputError(
            f"data.columns.group: expected a column of {found.text}: "
            f"{', '.join(table.column_names)}, found {column!r}"
        )
    values = table.select_columns([column])[column]
    return {f"{found.text}, {split}, row {i}": x for i, x in enumerate(values)}


def labelled(found: hub.Loaded, split: str, label: str) -> bool:
    """Return whether any row of a split has a class; -1 is none."""
    return bool((_class_ids(found.splits[split], label) >= 0).any())


def _class_ids(table: Any, label: str) -> np.ndarray:
    """Return the class id of each row; -1 if it is missing."""
    column = np.asarray(table.with_format("numpy")[label][:], np.float64)
    return np.nan_to_num(column, nan=-1).astype(np.int64)
