"""Sources of labelled images: in memory, subsets, and the embedded digits."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from rdrop_jax import extras
from rdrop_jax.errors import InputError


@runtime_checkable
class ImageRows(Protocol):
    """A random-access source of labelled images, not yet decoded.

    Rows are ``{"image", "label"}``. An image is an array [height, width, channels] from
    0 to 255, the bytes of an image file, or its path; a label is a class id.

    Attributes:
      labels: labels of all rows if known without reading them, else None.
    """

    @property
    def labels(self) -> np.ndarray | None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    def name(self, row: int) -> str:
        """Return the name of a row in error messages."""
        ...


@dataclass(frozen=True)
class Images:
    """One split in memory.

    Attributes:
      images: pixels [rows, height, width, channels], 0 to 255.
      labels: class ids [rows].
      origin: name of the split in error messages.
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    labels: Int[np.ndarray, " rows"]
    origin: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "label": self.labels[row]}

    def __repr__(self) -> str:
        return f"Images({self.images.shape})"

    def name(self, row: int) -> str:
        return f"{self.origin} row {row}".strip()


@dataclass(frozen=True)
class Subset:
    """Subset of the rows of a source.

    Attributes:
      rows: the source.
      indices: row numbers, in order.
      labelled: number of leading rows whose labels may be used. None: all, and the rows
        have no field for it.
    """

    rows: ImageRows
    indices: Int[np.ndarray, " subset"]
    labelled: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: int) -> dict[str, Any]:
        found = self.rows[int(self.indices[row])]
        if self.labelled is None:
            return found
        return found | {"labelled": np.float32(row < self.labelled)}

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.rows!r})"

    @property
    def labels(self) -> np.ndarray | None:
        labels = self.rows.labels
        return None if labels is None else labels[self.indices]

    def name(self, row: int) -> str:
        return self.rows.name(int(self.indices[row]))


def labels_of(rows: ImageRows) -> np.ndarray:
    """Return the labels of all rows; reads each row if they are not in memory."""
    if rows.labels is not None:
        return rows.labels
    return np.array([rows[i]["label"] for i in range(len(rows))])


def check_labels(
    labels: np.ndarray,
    num_classes: int,
    name: str,
    describe: Callable[[int], str] = "row {}".format,
) -> None:
    """Check that class ids are in the range of the model's outputs.

    Raises:
      InputError: a class id is out of range; the message names the first such row.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise InputError(
            f"{name}: expected labels from 0 to data.num_classes - 1 = "
            f"{num_classes - 1}, found {labels[bad[0]]} in {describe(int(bad[0]))}"
            f" ({bad.size} such rows)"
        )


def digits_file() -> Path:
    """Find scikit-learn's digits.csv.gz without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "data.name=digits: expected scikit-learn, which contains the digits, found "
            f"no such package. Run `{extras.install('train')}`."
        )
    file = Path(spec.submodule_search_locations[0], "datasets/data/digits.csv.gz")
    if not file.is_file():
        raise InputError(f"data.name=digits: expected {file}, found no such file")
    return file


def digits(split: str, split_seed: int) -> Images:
    """Load 8x8 handwritten digits: 1,257 for training, 180 validation, 360 test.

    The 1,797 images are shuffled with ``split_seed`` before they are split, so all
    splits have the same writers.

    Args:
      split: "train", "validation" or "test".
      split_seed: seed of the split assignment.

    Returns:
      The split, with pixels scaled from 0..16 to 0..255.
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
    return Images(pixels.reshape(-1, 8, 8, 1), rows[:, -1], f"digits, {split},")
