"""Images in .npz files: arrays x and y, image and label, or images and labels."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.data.labels import class_ids
from rdrop_jax.data.sources import Images
from rdrop_jax.data.splits import SPLITS, split_of, splits_in
from rdrop_jax.errors import InputError
from rdrop_jax.files import npz_headers

# Matched anywhere in a name, such as my_train.npz and mytrain.npz.
_INSIDE = {"train": ("train",), "validation": ("val",), "test": ("test",)}
_NAMES = (("x", "y"), ("image", "label"), ("images", "labels"))
_EXPECTED = f"expected arrays {' or '.join(f'{x} and {y}' for x, y in _NAMES)}"


def find(root: Path, *, training: bool = True) -> dict[str, Path]:
    """Find the splits of a folder with one ``*SPLIT*.npz`` each, or of a single file.

    Args:
      root: the folder or the file.
      training: require training images.

    Raises:
      InputError: no training file, two files for one split, or one file for two splits.
    """
    if root.is_file():
        return {"train": root}
    found: dict[str, Path] = {}
    names = _files(root)
    for split in SPLITS:
        files = [path for path in names if split in splits_of(path.stem)]
        if len(files) > 1:
            raise InputError(
                f"data.dir: expected one .npz file for {split} in {root}, found "
                f"{', '.join(p.name for p in files)}"
            )
        found |= dict.fromkeys([split], files[0]) if files else {}
    if "train" not in found and (training or not found):
        one = training and len(names) == 1 and not found
        hint = f". Set data.dir={names[0]} to split this file" if one else ""
        raise InputError(
            f"data.dir: expected *train*.npz in {root}, found "
            f"{', '.join(p.name for p in names) or 'none'}{hint}"
        )
    for split, path in found.items():
        others = [name for name in found if name != split and found[name] == path]
        if others:  # such as trainval.npz: its rows would be in both splits
            raise InputError(
                f"data.dir: expected a separate file for {split}, found {path}, "
                f"whose name also contains {' and '.join(others)}"
            )
    return found


def notes(root: Path) -> tuple[str, ...]:
    """Return a note on the .npz files of a folder that are not splits, if any."""
    if root.is_file():
        return ()
    rest = [path.name for path in _files(root) if not splits_of(path.stem)]
    found = (
        f"{root}: array files that belong to no split are not read: {', '.join(rest)}"
    )
    return (found,) if rest else ()


def _files(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.suffix.lower() == ".npz")


def splits_of(stem: str) -> set[str]:
    """Return the splits whose names a file name contains, as words or inside words."""
    inside = {
        split
        for split, words in _INSIDE.items()
        if any(word in stem.casefold() for word in words)
    }
    words = {split_of(word) for word in re.split(r"[\W_]+", stem)}
    return inside | splits_in(stem) | {word for word in words if word}


def load(path: Path) -> Images:
    """Load the images and class ids of a file.

    Args:
      path: .npz with x (uint8 [rows, height, width] or [..., channels]) and y (integers
        [rows]), or other names of `_NAMES`; nothing is unpickled.

    Returns:
      All rows.

    Raises:
      InputError: unexpected arrays, or an unreadable file.
    """
    arrays = npz_headers.load(path)
    if {"indices", "indptr", "shape"} <= arrays.keys():
        raise InputError(
            f"{path}: {_EXPECTED}, found a sparse matrix. Store its toarray()"
        )
    for x, y in _NAMES:
        if x in arrays and y in arrays:
            images, labels = arrays[x], arrays[y]
            break
    else:
        raise InputError(f"{path}: {_EXPECTED}, found {', '.join(arrays) or 'none'}")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(
            f"{path}: expected {x} as uint8 [rows, height, width, 1 or 3], found "
            f"{images.dtype} {images.shape}"
        )
    if 0 in images.shape[1:]:
        raise InputError(f"{path}: expected {x} with pixels, found {images.shape}")
    whole = np.issubdtype(labels.dtype, np.integer)
    if not whole or labels.shape != (len(images),) or not len(images):
        raise InputError(
            f"{path}: expected {y} as {len(images)} integers, at least one, found "
            f"{labels.dtype} {labels.shape}"
        )
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= np.iinfo(np.int32).max:
            raise InputError(f"{path}: expected {y} as class ids from 0, found {label}")
    return Images(images, labels.astype(np.int64), str(path))


def groups(path: Path, array: str, rows: int) -> dict[str, Any]:
    """Return the values of an array [rows] by the names of the rows.

    Raises:
      InputError: no such array, or an unreadable file.
    """
    found = npz_headers.load(path, (array,)).get(array)
    if found is None or found.shape != (rows,):
        raise InputError(
            f"{path}: expected an array {array!r} ({rows},) (data.columns.group), "
            f"found {'none' if found is None else found.shape}"
        )
    return {f"{path} row {i}": x for i, x in enumerate(found.tolist())}


def classes(path: Path) -> tuple[str, ...]:
    """Return normalized class names from the array ``classes``, if present.

    Raises:
      InputError: a duplicate name, or an unreadable file.
    """
    names = npz_headers.load(path, ("classes",)).get("classes", np.zeros(0, str))
    if names.dtype.kind == "S":  # bytes of UTF-8
        names = np.char.decode(names, "utf-8", "replace")
    found = [str(name) for name in names.ravel().tolist()]
    return tuple(class_ids(found))
