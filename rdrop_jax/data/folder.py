"""A user's own images: a folder per class, or a table of paths and labels."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.errors import InputError

# The names that split folders and files go by.
NAMES = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Files:
    """Image files with labels.

    Attributes:
      root: folder that the paths are relative to.
      paths: of the images.
      labels: class ids [rows].
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.root / self.paths[row], "label": self.labels[row]}

    def __repr__(self) -> str:
        return f"Files({self.root}, {len(self)} images)"

    def name(self, row: int) -> str:
        return str(self.root / self.paths[row])


def find(
    root: Path, known: tuple[str, ...] = ()
) -> tuple[dict[str, Files], tuple[str, ...]]:
    """Splits and class names of a folder of images.

    One of these layouts; a split is called train, validation (val, valid) or test:
      ROOT/SPLIT/CLASS/...image     folders below a class are searched too
      ROOT/CLASS/...image           one set, from which splits are cut later
      ROOT/SPLIT.tsv                lines of PATH<TAB>LABEL, paths below ROOT
      ROOT.tsv, or ROOT/labels.tsv  one set

    Classes are sorted by name; a label in a table is a class name.

    Args:
      root: the folder, or the table.
      known: class names of a trained model, which needs no training images.

    Returns:
      Split to files, and class names by id.

    Raises:
      InputError: no images, a class or a split without any, a split that is there
        twice, fewer than two classes, a path that leaves the folder.
    """
    pairs = dict(_tables(root)) or dict(_folders(root))
    if "train" not in pairs and not known:
        raise InputError(
            f"data.dir: expected images to train on in {root}, found only splits "
            f"{', '.join(pairs)}"
        )
    classes = known or tuple(sorted({label for _, label in pairs["train"]}))
    if len(classes) < 2:
        raise InputError(
            f"data.dir: expected at least two classes in {root}, found "
            f"{', '.join(classes) or 'none'}"
        )
    base = root if root.is_dir() else root.parent
    ids = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, found in pairs.items():
        if not found:
            raise InputError(f"data.dir: expected {split} images in {root}, found none")
        for path, label in found:
            if label not in ids:
                raise InputError(
                    f"data.dir: {split}: expected the classes of the training images, "
                    f"{_some(classes)}, found {label!r} for {path}"
                )
        labels = np.array([ids[label] for _, label in found], np.int64)
        splits[split] = Files(base, tuple(path for path, _ in found), labels)
    return splits, classes


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _folders(root: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    splits = [
        (split, root / name)
        for split, names in NAMES.items()
        for name in names
        if (root / name).is_dir()
    ]
    _check_single(splits)
    for split, folder in splits or [("train", root)]:
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        if not classes:
            raise InputError(
                f"data.dir: expected a folder per class in {folder}, found none"
            )
        found = []
        for class_folder in classes:
            images = sorted(image_files(class_folder))
            if not images:
                raise InputError(
                    f"data.dir: expected images ({', '.join(SUFFIXES)}) in "
                    f"{class_folder}, found none"
                )
            found += [(str(p.relative_to(root)), class_folder.name) for p in images]
        yield split, found


def image_files(folder: Path) -> Iterator[Path]:
    """Paths below a folder whose names end like images, hidden ones left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(names):
            if name[0] != "." and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _tables(root: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if root.is_file():
        yield "train", list(_pairs(root, root.parent))
        return
    found = [(split, root / f"{name}.tsv") for split in NAMES for name in NAMES[split]]
    tables = [(split, path) for split, path in found if path.is_file()]
    if not tables and (root / "labels.tsv").is_file():
        tables = [("train", root / "labels.tsv")]
    _check_single(tables)
    for split, path in tables:
        yield split, list(_pairs(path, root))


def _check_single(found: list[tuple[str, Path]]) -> None:
    splits = [split for split, _ in found]
    repeated = [str(path) for split, path in found if splits.count(split) > 1]
    if repeated:
        raise InputError(
            f"data.dir: expected one of each split, found {', '.join(repeated)}"
        )


def _pairs(table: Path, root: Path) -> Iterator[tuple[str, str]]:
    try:
        lines: Iterable[str] = table.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"data.dir: expected UTF-8 in {table}, {error}") from error
    inside = os.path.abspath(root)
    for number, line in enumerate(lines, 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        path, tab, label = line.partition("\t")
        if not tab or not path or not label.strip() or "\t" in label:
            raise InputError(f"{where}: expected PATH<TAB>LABEL, found {line!r}")
        # By name alone: links that lead elsewhere are the user's own, as in folders.
        if not Path(os.path.abspath(root / path)).is_relative_to(inside):
            raise InputError(f"{where}: expected a path below {root}, found {path!r}")
        yield path, label.strip()
