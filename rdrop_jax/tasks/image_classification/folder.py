"""Image datasets of the user: a folder per class, or a table of paths and labels."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.data.labels import class_ids, normal
from rdrop_jax.data.splits import split_of, unclear
from rdrop_jax.data.tables import quoted
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.tasks.image_classification import image_files

_TABLES = (".tsv", ".csv")
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Files:
    """Labelled image files of one split.

    Attributes:
      root: folder that the paths are relative to.
      paths: paths of the images.
      labels: class ids [rows].
      notes: a message about the folder's skipped files, if any.
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
    """Find the splits and class names of a folder of images.

    Supported layouts, where SPLIT is any usual name (`splits.split_of`):
      ROOT/SPLIT/CLASS/...image     folders below a class are searched too
      ROOT/CLASS/...image           one set, to be split later
      ROOT/SPLIT.tsv                lines of PATH<TAB>LABEL, relative to ROOT
      ROOT.tsv, or ROOT/labels.tsv  one set

    Tables may also be .csv, with or without a header, if ROOT has no folders or ROOT is
    the table. ``datasets`` is not used: it mixes or loses splits of some names, leaves
    out files without a note, and takes the innermost folder for the class.

    Classes are sorted by name; a label in a table is a class name.

    Args:
      root: the folder or the table.
      known: class names of a trained model; training images are then optional.

    Returns:
      Files by split, and class names by id.

    Raises:
      InputError: no images, an empty class or split, a duplicate split, folders of
        splits mixed with folders of classes, ambiguous split names, fewer than two
        classes, or a path outside the folder.
    """
    notes: list[str] = []
    try:
        pairs = dict(_tables(root)) or dict(_folders(root, notes))
    except OSError as error:
        raise InputError(f"data.dir: {root} cannot be read: {error}") from error
    if "train" not in pairs and not known:
        raise InputError(
            f"data.dir: expected training images in {root}, found only splits "
            f"{', '.join(pairs)}"
        )
    classes = known or tuple(sorted({label for _, label in pairs["train"]}))
    if len(classes) < 2:
        raise InputError(
            f"data.dir: expected at least two classes in {root}, found "
            f"{', '.join(classes) or 'none'}{_inner(root, classes)}"
        )
    base = root if root.is_dir() else root.parent
    ids = class_ids(classes)
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
    folders = _subfolders(root)
    others = [folder for folder in folders if split_of(folder.name) is None]
    splits = [(s, path) for path in folders if (s := split_of(path.name))]
    known = [split for split, _ in splits]
    _check_unclear(root, [path.name for path in others], known, "folders")
    if splits:
        _check_splits(root, splits, others)
    _check_single(splits)
    left_out = Counter[str]()
    for split, folder in splits or [("train", root)]:
        yield split, list(_classes(root, folder, left_out))
    for folder in others if splits else ():
        inside = Counter[str]()
        count = sum(1 for _ in image_files.find(folder, inside)) + inside.total()
        left_out.update({f"in {folder.name}/": count} if count else {})
    if left_out:
        notes.append(image_files.left_out_line(root, left_out))


def _check_unclear(root: Path, names: list[str], known: list[str], what: str) -> None:
    """Reject names that may be splits."""
    found = unclear(names, known)
    if found:
        raise InputError(
            f"data.dir: expected {what} in {root} named train, validation or test, or "
            f"after classes, found ambiguous names: {_some(found)}. Rename them"
        )


def _check_splits(
    root: Path, splits: list[tuple[str, Path]], others: list[Path]
) -> None:
    """Reject folders of splits mixed with folders of classes."""
    full = [folder.name for folder in others if any(image_files.find(folder))]
    with_classes = {split for split, folder in splits if _subfolders(folder)}
    if full and not ("train" in with_classes and len(with_classes) > 1):
        names = _some(folder.name for _, folder in splits)
        raise InputError(
            f"data.dir: expected only folders of splits or only folders of classes in "
            f"{root}, found {names}, named like a split, and {_some(full)}. Rename the "
            "class, or move the other folders away"
        )


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")


def _classes(
    root: Path, folder: Path, left_out: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yield the images of a split with their class names, and count skipped files."""
    class_folders = _subfolders(folder)
    if not class_folders:
        raise InputError(
            f"data.dir: expected a folder per class in {folder}, found none"
        )
    outside = sum(image_files.is_image(path.name) for path in folder.iterdir())
    left_out.update({"images outside the class folders": outside} if outside else {})
    _check_depth(folder, class_folders)
    names: dict[str, str] = {}
    for class_folder in class_folders:
        label = normal(class_folder.name)
        if label in names:
            raise InputError(
                f"data.dir: expected one folder for each class in {folder}, found "
                f"{names[label]!r} and {class_folder.name!r}"
            )
        names[label] = class_folder.name
        _check_link(class_folder)
        images = sorted(image_files.find(class_folder, left_out))
        if not images:
            raise InputError(
                f"data.dir: expected images ({', '.join(image_files.SUFFIXES)}) in "
                f"{class_folder}, found none"
            )
        yield from ((str(p.relative_to(root)), label) for p in images)


def _check_depth(folder: Path, class_folders: list[Path]) -> None:
    """Reject class folders that contain folders of splits."""
    for path in class_folders:
        below = [inner.name for inner in _subfolders(path)]
        splits = {split for name in below if (split := split_of(name))}
        if len(splits) > 1 or unclear(below):
            remedy = (
                "Arrange the images as SPLIT/CLASS/IMAGE"
                if len(class_folders) > 1
                else f"Set data.dir to {path}"
            )
            raise InputError(
                f"data.dir: expected a folder per class in {folder}, found "
                f"{path.name}, which contains {_some(below)}. {remedy}"
            )


def _inner(root: Path, classes: tuple[str, ...]) -> str:
    """Return the remedy if the only folder contains the class folders, else ""."""
    found = [] if root.is_file() else _subfolders(root)
    if len(found) == len(classes) == 1 and len(_subfolders(found[0])) > 1:
        return f". Set data.dir to {found[0]} if its folders are the classes"
    return ""


def _check_link(folder: Path) -> None:
    """Reject a link to one of its parent folders, which has images of all classes."""
    if Path(os.path.realpath(folder.parent)).is_relative_to(os.path.realpath(folder)):
        raise InputError(
            f"data.dir: expected a folder of one class, found {folder}, a link to a "
            "folder that contains it. Remove the link"
        )


def _tables(root: Path) -> Iterator[tuple[str, Pairs]]:
    if root.is_file():
        if root.suffix.lower() in (".json", ".jsonl", ".parquet"):
            raise InputError(
                f"data.dir: expected a folder, a .tsv or a .csv, found {root}"
            )
        yield "train", list(_pairs(root, root.parent))
        return
    files = sorted(p for p in root.iterdir() if p.suffix.lower() in _TABLES)
    found = [
        (split_of(path.stem) or path.stem.lower(), path)
        for path in files
        if split_of(path.stem) or path.stem.lower() == "labels"
    ]
    tables = [(split, path) for split, path in found if split != "labels"]
    if not tables:
        tables = [("train", path) for _, path in found]
    known = [split for split, _ in found if split != "labels"]
    if known or not any(split_of(path.name) for path in _subfolders(root)):
        named = {path for _, path in found}
        ends = {".tsv", *(path.suffix.lower() for _, path in tables)}
        rest = [p for p in files if p not in named and p.suffix.lower() in ends]
        _check_unclear(root, [path.stem for path in rest], known, "tables")
    if _subfolders(root) and all(p.suffix.lower() == ".csv" for _, p in tables):
        return  # the folders are classes or splits, and the tables describe them
    _check_single(tables)
    for split, path in tables:
        yield split, list(_pairs(path, root))


def _check_single(found: list[tuple[str, Path]]) -> None:
    splits = [split for split, _ in found]
    repeated = [str(path) for split, path in found if splits.count(split) > 1]
    if repeated:
        raise InputError(
            f"data.dir: expected one table per split, found {', '.join(repeated)}"
        )


def _pairs(table: Path, root: Path) -> Iterator[tuple[str, str]]:
    inside = os.path.abspath(root)
    labels: dict[str, str] = {}
    for where, values in _rows(table):
        name, text = values if len(values) == 2 else ("", "")
        path, label = image_files.listed_path(root, name), normal(text)
        if not path or not label:
            raise InputError(
                f"{where}: expected a path and a class, found {values!r:.80}"
            )
        if lines.clean(text) != text:
            raise InputError(f"{where}: expected a label in UTF-8, found {text!r}")
        # Check the path only: links that lead outside are allowed, as in folders.
        if not Path(os.path.abspath(root / path)).is_relative_to(inside):
            raise InputError(f"{where}: expected a path below {root}, found {path!r}")
        if (other := labels.setdefault(os.path.normpath(path), label)) != label:
            raise InputError(
                f"{where}: expected one label for {path!r}, found {other!r} and "
                f"{label!r}"
            )
        yield path, label


def _rows(table: Path) -> Iterator[tuple[str, list[str]]]:
    """Read the rows of a table, without a header."""
    if table.suffix.lower() == ".csv":
        found = quoted(table, ",", names=True)
    else:
        placed = lines.placed(lines.read(table, names=True), str(table))
        found = ((where, line.split("\t")) for where, line in placed if line.strip())
    for number, (where, values) in enumerate(found):
        if number or len(values) != 2 or _is_image(table.parent, values[0]):
            yield where, values


def _is_image(folder: Path, name: str) -> bool:
    is_named_so = name.strip().lower().endswith(image_files.SUFFIXES)
    return is_named_so or os.path.isfile(folder / image_files.listed_path(folder, name))
