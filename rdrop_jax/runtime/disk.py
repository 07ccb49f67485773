"""Writing files whole, and saying so when a disk is full. Needs no jax."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rdrop_jax.errors import InputError

# What orbax's storage says in place of errno.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "quota exceeded")
# EFBIG: the limit on file sizes that a shell or a scheduler sets.
FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What orbax's storage says of a folder that was removed.
_GONE = "NOT_FOUND"


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn the errors of an unusable disk into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in FULL_CODES
        if full or any(words in str(error) for words in _FULL):
            raise no_space(folder, error) from error
        if isinstance(error, OSError) or _GONE in str(error):
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


# The identity of a folder that is not there.
GONE = (-1, -1)


def identity(folder: Path) -> tuple[int, int]:
    """Return device and inode of a folder, or `GONE`."""
    try:
        found = folder.stat()
    except OSError:
        return GONE
    return found.st_dev, found.st_ino


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a run has written: the one reader of such files.

    Raises:
      InputError: a folder, a pipe or a device, an unreadable file, or other content.
    """
    try:
        with open_regular(path, "rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
    except RecursionError:
        found = "values nested too deeply"
    except ValueError as error:  # also text that is not Unicode
        found = f"content that is not JSON ({error})"
    else:
        if isinstance(content, dict):
            return content
        found = f"a JSON {type(content).__name__}"
    raise InputError(f"{path}: expected a JSON object, found {found}")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl.

    Raises:
      InputError: an unreadable file, or a line that is no record; names it.
    """
    try:
        with open_regular(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, 1):
        record = as_record(line)
        if record is None and line:
            raise InputError(
                f"{path}, line {number}: expected a JSON object with a step, found "
                f"{line[:40]!r}"
            )
        if record is not None:
            records.append(record)
    return records


def as_record(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; None if it is no record."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    known = isinstance(record, dict) and type(record.get("step")) is int
    return record if known else None


def open_regular(path: Path, mode: str) -> IO[Any]:
    """Open a file, and never wait for the other end of a pipe.

    Raises:
      OSError: as `open`, for a pipe, and for a device to be read.
    """

    def opener(name: str, flags: int) -> int:
        number = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        kind = os.fstat(number).st_mode
        # A device fails at a write by itself, and may never end at a read.
        reads = "r" in mode or "+" in mode
        if stat.S_ISFIFO(kind) or (reads and not stat.S_ISREG(kind)):
            os.close(number)
            raise OSError(errno.EINVAL, "expected a regular file", str(path))
        return number

    return open(path, mode, opener=opener)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, also where the power fails."""
    aside = path.with_name(path.name + ".tmp")
    with explained(path.parent):
        with open_regular(aside, "w") as file:
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
