"""Labelled images as arrays, by split."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from rdrop_jax.data.ready import digits_file
from rdrop_jax.errors import InputError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Images:
    """One split in memory, one entry per row.

    Attributes:
      images: [rows, height, width, channels], 0 to 255.
      labels: class ids [rows].
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    labels: Int[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "label": self.labels[row]}

    def __repr__(self) -> str:
        return f"Images({self.images.shape})"


def check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    """Refuses class ids that the model has no output for.

    Raises:
      InputError: names the first such row.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise InputError(
            f"{name}: expected labels from 0 to data.num_classes - 1 = "
            f"{num_classes - 1}, found {labels[bad[0]]} in row {bad[0]}"
            f" ({bad.size} such rows)"
        )


def digits(split: str, split_seed: int) -> Images:
    """8x8 handwritten digits: 1,257 to train, 180 for validation, 360 to test.

    The 1,797 images are shuffled by ``split_seed`` before they are cut, so that the
    same writers appear in every split.

    Args:
      split: "train", "validation" or "test".
      split_seed: another seed cuts other splits.

    Returns:
      The split, pixels scaled from 0..16 to 0..255.
    """
    table = np.loadtxt(digits_file(), delimiter=",", dtype=np.int64)
    order = np.random.default_rng(split_seed).permutation(len(table))
    cut = {
        "train": slice(0, 1257),
        "validation": slice(1257, 1437),
        "test": slice(1437, None),
    }
    rows = table[order[cut[split]]]
    pixels = np.round(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return Images(pixels.reshape(-1, 8, 8, 1), rows[:, -1])


def digits_sha256() -> str:
    """Checksum of the file that `digits` reads."""
    return hashlib.sha256(digits_file().read_bytes()).hexdigest()
