"""Writing files whole, and saying so when a disk is full. Needs no jax."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError

# What orbax's storage says in place of errno.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "quota exceeded")
# EFBIG: the limit on file sizes that a shell or a scheduler sets.
_FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What lies in the way, or may not be touched.
_BARRED = (
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns the errors of an unusable disk into an `InputError` that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in _FULL_CODES
        if full or any(words in str(error) for words in _FULL):
            raise no_space(folder, error) from error
        if isinstance(error, _BARRED) or getattr(error, "errno", None) == errno.EROFS:
            raise InputError(f"--workdir: cannot write in {folder}: {error}") from error
        raise


def no_space(folder: Path, error: Exception) -> InputError:
    """The message for a disk, a quota or a limit on file sizes that is full."""
    there = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(there).free
    return InputError(
        f"--workdir: no space left to write in {folder} ({free / 2**20:.1f} MiB free, "
        f"{_cause(error)}); finished checkpoints are whole: free some space and start "
        "again to go on"
    )


def _cause(error: Exception) -> str:
    """What the system said; orbax's storage quotes it in a long text."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return next(words for words in reversed(_FULL) if words in str(error))


def check_space(folder: Path, needed: int) -> None:
    """Refuses to begin what could not be stored.

    Raises:
      InputError: says how many bytes there are and how many are needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"--workdir: expected {needed / 2**20:.1f} MiB free for checkpoints, found "
            f"{free / 2**20:.1f} MiB in {folder}"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, also where the power fails."""
    aside = path.with_name(path.name + ".tmp")
    with explained(path.parent):
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
