"""Checksum files of checkpoints. A checkpoint with one is complete.

Needs no jax.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import explained, read_json, sync, write_json

NAME = "checksums.json"
_STEP = re.compile(r"step_(0|[1-9][0-9]{0,17})")


def step_folders(checkpoints: Path) -> dict[int, Path]:
    """Return the folders named ``step_N`` by step, oldest first; ignore other names."""
    if not checkpoints.is_dir():
        return {}
    matches = ((_STEP.fullmatch(path.name), path) for path in checkpoints.iterdir())
    found = {int(m[1]): path for m, path in matches if m and path.is_dir()}
    return dict(sorted(found.items()))


def is_complete(folder: Path) -> bool:
    """Return whether a folder has a checksum file; `problem` verifies the content."""
    return (folder / NAME).is_file()


def complete_steps(checkpoints: Path) -> list[int]:
    """Return the steps whose folder is complete, oldest first."""
    folders = step_folders(checkpoints)
    return [step for step, folder in folders.items() if is_complete(folder)]


def none_complete(checkpoints: Path) -> bool:
    """Return whether no save was ever completed, as after a crash in the first one.

    A save starts only after the previous one has its checksum file, so that a crash
    leaves at most one incomplete folder.
    """
    folders = step_folders(checkpoints)
    return len(folders) <= 1 and not any(map(is_complete, folders.values()))


def write(folder: Path) -> None:
    """Write the checksum file of all files in a folder.

    Raises:
      InputError: the disk is full.
    """
    with explained(folder):
        files = {
            str(path.relative_to(folder)): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != NAME
        }
    write_json(folder / NAME, files)
    sync(folder.parent)


def problem(folder: Path, under: str = "") -> str:
    """Return the problem of a checkpoint folder; "" if it is valid.

    Args:
      folder: checkpoint folder of one step.
      under: path prefix of the files to verify.
    """
    if not os.path.lexists(folder / NAME):
        return f"expected {NAME}, found none: it was not finished"
    try:
        expected = read_json(folder / NAME)
    except InputError as error:
        return str(error).removeprefix(f"{folder}{os.sep}")
    try:
        listed = [
            (folder / name, int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in expected.items()
            if name.startswith(under)
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return f"{NAME}: expected bytes and sha256 of every file, found something else"
    if not listed:
        return f"{NAME}: expected files in {under or folder.name}, found none"
    try:
        for path, size, _ in listed:  # the cheap check first
            if path.stat().st_size != size:
                found = path.stat().st_size
                return f"{path.name}: expected {size} bytes, found {found}"
        for path, _, digest in listed:
            if (found_digest := sha256(path)) != digest:
                return (
                    f"{path.name}: expected sha256 {digest[:12]}, "
                    f"found {found_digest[:12]}"
                )
    except OSError as error:  # also if a running training has just pruned it
        return f"{path.name}: expected a readable file, found {error.strerror}"
    except ValueError:  # a zero byte or a lone surrogate in the name
        return f"{NAME}: expected names of files, found {str(path)!a:.60}"
    return ""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(paths: Iterable[Path], root: str) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name relative to ``root``.

    Data may move with their folder. A file outside of ``root`` has its full path.
    """
    return {_name(path, root): sha256(path) for path in paths}


def _name(path: Path, root: str) -> str:
    inside = path.is_relative_to(root)
    return (path.relative_to(root) if inside else path).as_posix()
