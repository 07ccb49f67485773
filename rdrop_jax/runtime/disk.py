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
_FULL = ("RESOURCE_EXHAUSTED", "No space left")


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turns the errors of an unusable disk into an `InputError` that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or any(words in str(error) for words in _FULL):
            raise no_space(folder) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError):
            raise InputError(f"--workdir: cannot write in {folder}: {error}") from error
        raise


def no_space(folder: Path) -> InputError:
    """The message for a disk that is full."""
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    return InputError(
        f"--workdir: no space left to write in {folder} ({free / 2**20:.0f} MiB free); "
        "finished checkpoints are whole: free some space and start again to go on"
    )


def check_space(folder: Path, needed: int) -> None:
    """Refuses to begin what could not be stored.

    Raises:
      InputError: says how many bytes there are and how many are needed.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"--workdir: expected {needed / 2**20:.0f} MiB free for checkpoints, found "
            f"{free / 2**20:.0f} MiB in {folder}"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: aside, then renamed."""
    aside = path.with_name(path.name + ".tmp")
    with explained(path.parent):
        aside.write_text(text)
        os.replace(aside, path)


def write_json(path: Path, content: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")
