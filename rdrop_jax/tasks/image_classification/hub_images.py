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
    """

    def __init__(self, found: hub.Loaded, split: str) -> None:
        from datasets import Image

        image, label = columns(found, split)
        self._columns = image, label
        table = found.splits[split].select_columns([image, label])
        self._source = table.cast_column(image, Image(decode=False))
        self._name = f"{found.text}, {split}"
        self.labels = np.asarray(table.with_format("numpy")[label][:], np.int64)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image = self._source[row][self._columns[0]]
        return {
            "image": image["bytes"] or image["path"],
            "label": self.labels[row],
        }

    def __repr__(self) -> str:
        return f"HubImages({self._name})"

    def name(self, row: int) -> str:
        """Return the name of a row in error messages."""
        return f"{self._name}, row {row}"


def columns(found: hub.Loaded, split: str) -> tuple[str, str]:
    """Return the column of the images and the column of the classes.

    These are the first of their type; a column of classes named ``label`` comes first.

    Raises:
      InputError: the dataset has no such column.
    """
    from datasets import ClassLabel, Image

    features = found.splits[split].features
    images = [name for name, f in features.items() if isinstance(f, Image)]
    labels = [name for name, f in features.items() if isinstance(f, ClassLabel)]
    if not images or not labels:
        there = ", ".join(f"{n} ({type(f).__name__})" for n, f in features.items())
        raise InputError(
            f"data.name: {found.text}: expected a column of images and one of classes, "
            f"found {there}"
        )
    return images[0], "label" if "label" in labels else labels[0]


def labelled(found: hub.Loaded, split: str) -> bool:
    """Return whether any row of a split has a class; -1 is none."""
    _, label = columns(found, split)
    return bool((np.asarray(found.splits[split][label][:]) >= 0).any())
