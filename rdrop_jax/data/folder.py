"""A user's own images: a folder per class, or a table of paths and labels."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.data import lines
from rdrop_jax.data.split_names import split_of
from rdrop_jax.errors import InputError

# Endings of the formats that `rdrop_jax.data.decode` reads.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)
_OTHER_TABLES = (".csv", ".json", ".jsonl", ".parquet")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Files:
    """Image files with labels.

    Attributes:
      root: folder that the paths are relative to.
      paths: of the images.
      labels: class ids [rows].
      notes: a line on the files of the folder that are left out, if there are any.
    """

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...] = ()

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

    One of these layouts, where SPLIT is any usual name (`split_names.split_of`):
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
        twice, folders of splits and of classes side by side, fewer than two classes, a
        path that leaves the folder.
    """
    notes: list[str] = []
    try:
        pairs = dict(_tables(root)) or dict(_folders(root, notes))
    except OSError as error:
        raise InputError(f"data.dir: {root} cannot be read: {error}") from error
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
        paths = tuple(path for path, _ in found)
        splits[split] = Files(base, paths, labels, tuple(notes))
    return splits, classes


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _folders(root: Path, notes: list[str]) -> Iterator[tuple[str, Pairs]]:
    splits, others = [], []
    for folder in _subfolders(root):
        split = split_of(folder.name)
        if split is None:
            others.append(folder)
        else:
            splits.append((split, folder))
    if splits:
        _check_splits(root, splits, others)
    _check_single(splits)
    left_out = Counter[str]()
    for split, folder in splits or [("train", root)]:
        yield split, list(_classes(root, folder, left_out))
    for folder in others if splits else ():
        left_out.update(_ending(path) for path in image_files(folder))
    if left_out:
        notes.append(left_out_line(root, left_out))


def left_out_line(root: Path, left_out: Counter[str]) -> str:
    """Report files that are left out.

    Args:
      root: folder that was searched.
      left_out: number of files by ending.
    """
    counts = ", ".join(f"{n} {ending}" for ending, n in sorted(left_out.items()))
    return (
        f"{root}: {left_out.total()} files are not read: {counts}. Images have the "
        f"endings {', '.join(SUFFIXES)}, and in training data a class folder"
    )


def _check_splits(
    root: Path, splits: list[tuple[str, Path]], others: list[Path]
) -> None:
    """Refuses folders of splits beside folders of classes."""
    full = [folder.name for folder in others if any(image_files(folder))]
    with_classes = {split for split, folder in splits if _subfolders(folder)}
    if full and not ("train" in with_classes and len(with_classes) > 1):
        names = _some(folder.name for _, folder in splits)
        raise InputError(
            f"data.dir: expected folders of splits alone or of classes alone in {root},"
            f" found {names}, named like a split, beside {_some(full)}. Rename the "
            "class, or move the other folders away"
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _classes(
    root: Path, folder: Path, left_out: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Images of a split with their class names; counts files that are left out."""
    class_folders = _subfolders(folder)
    if not class_folders:
        raise InputError(
            f"data.dir: expected a folder per class in {folder}, found none"
        )
    left_out.update(_ending(p) for p in folder.iterdir() if _is_image(p.name))
    names: dict[str, str] = {}
    for class_folder in class_folders:
        label = class_name(class_folder.name)
        if label in names:
            raise InputError(
                f"data.dir: expected one folder for each class in {folder}, found "
                f"{names[label]!r} and {class_folder.name!r}"
            )
        names[label] = class_folder.name
        _check_link(class_folder)
        images = sorted(image_files(class_folder, left_out))
        if not images:
            raise InputError(
                f"data.dir: expected images ({', '.join(SUFFIXES)}) in "
                f"{class_folder}, found none"
            )
        yield from ((str(p.relative_to(root)), label) for p in images)


def class_name(name: str) -> str:
    """A class name in its one spelling: NFC, no white space around it.

    Example:
      >>> class_name(" cat ")
      'cat'
    """
    text = os.fsencode(name).decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text).strip()


def _check_link(folder: Path) -> None:
    """Refuses a link to a folder that contains it, with images of all classes."""
    if Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"data.dir: expected a folder of one class, found {folder}, a link to a "
            "folder that contains it. Remove the link"
        )


def _ending(path: Path) -> str:
    return path.suffix.lower() or "without an ending"


def _is_image(name: str) -> bool:
    return name[0] != "." and name.lower().endswith(SUFFIXES)


def _is_system_file(name: str) -> bool:
    return name[0] == "." or name.lower() in ("thumbs.db", "desktop.ini")


def image_files(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Paths below a folder whose names end like images, hidden ones left out.

    Args:
      folder: to search; links to folders are not followed.
      left_out: gets the number of all other files, and of links, by ending.
    """
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        if left_out is not None:
            links = sum(os.path.islink(os.path.join(parent, name)) for name in folders)
            left_out.update({"links to folders": links} if links else {})
        for name in sorted(names):
            if _is_image(name):
                yield Path(parent, name)
            elif left_out is not None and not _is_system_file(name):
                left_out[_ending(Path(name))] += 1


def _tables(root: Path) -> Iterator[tuple[str, Pairs]]:
    if root.is_file():
        if root.suffix.lower() in _OTHER_TABLES:
            raise InputError(f"data.dir: expected a folder or a .tsv, found {root}")
        yield "train", list(_pairs(root, root.parent))
        return
    files = sorted(p for p in root.iterdir() if p.suffix.lower() in (".tsv", ".csv"))
    found = [
        (split_of(path.stem) or path.stem.lower(), path)
        for path in files
        if split_of(path.stem) or path.stem.lower() == "labels"
    ]
    tables = [(split, path) for split, path in found if split != "labels"]
    if not tables:
        tables = [("train", path) for _, path in found]
    foreign = [path for _, path in tables if path.suffix.lower() == ".csv"]
    if foreign and (len(foreign) < len(tables) or not _subfolders(root)):
        raise InputError(
            f"data.dir: expected .tsv files with lines of PATH<TAB>LABEL, found "
            f"{foreign[0]}. Convert it"
        )
    if foreign:
        return
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
    inside = os.path.abspath(root)
    labels: dict[str, str] = {}
    for where, line in lines.placed(lines.read(table), str(table)):
        if not line.strip():
            continue
        path, tab, label = line.partition("\t")
        label = class_name(label)
        if not tab or not path or not label or "\t" in label:
            raise InputError(f"{where}: expected PATH<TAB>LABEL, found {line!r}")
        # By name alone: links that lead elsewhere are the user's own, as in folders.
        if not Path(os.path.abspath(root / path)).is_relative_to(inside):
            raise InputError(f"{where}: expected a path below {root}, found {path!r}")
        if labels.setdefault(path, label) != label:
            raise InputError(
                f"{where}: expected one label for {path!r}, found {labels[path]!r} and "
                f"{label!r}"
            )
        yield path, label
