"""Atomic file writes, and clear errors for a full disk. Needs no jax."""

import contextlib
import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs

# Error texts of orbax's storage layer, which sets no errno.
_FULL = ("RESOURCE_EXHAUSTED", "No space left", "File too large", "quota exceeded")
# EFBIG: a file-size limit set by the shell or the scheduler.
FULL_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Error text of orbax's storage layer for a folder that was removed.
_GONE = "NOT_FOUND"


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Convert disk errors to an `InputError` that names the folder."""
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
    """Return the error for a full disk, quota or file-size limit."""
    there = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(there).free
    return InputError(
        f"--workdir: no space left to write in {folder} ({free / 2**20:.1f} MiB free, "
        f"{_cause(error)}); finished checkpoints are valid. Free some space and start "
        "again to resume"
    )


def _cause(error: Exception) -> str:
    """Return the system's error text, also from a longer message of orbax's storage."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return next(words for words in reversed(_FULL) if words in str(error))


def check_space(folder: Path, needed: int) -> None:
    """Check that a folder has enough free space.

    Raises:
      InputError: fewer than ``needed`` bytes are free; the message gives both sizes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"--workdir: expected {needed / 2**20:.1f} MiB free for checkpoints, found "
            f"{free / 2**20:.1f} MiB in {folder}"
        )


# The identity of a folder that does not exist.
GONE = (-1, -1)


def identity(folder: Path) -> tuple[int, int]:
    """Return device and inode of a folder, or `GONE`."""
    try:
        found = folder.stat()
    except OSError:
        return GONE
    return found.st_dev, found.st_ino


def read_json(path: Path, field: str = "") -> dict[str, Any]:
    """Read a JSON object.

    Args:
      path: path of the file.
      field: config field that names the file, for messages.

    Raises:
      InputError: not a regular file, an unreadable file, or not a JSON object.
    """
    try:
        with open_regular(path, "rb") as file:
            content = json.loads(file.read())
    except OSError as error:
        found = f"a file that cannot be read ({error.strerror or error})"
    except RecursionError:
        found = "values nested too deeply"
    except ValueError as error:  # also text that is not Unicode
        lfs.check_not_pointer(path, field)
        found = f"content that is not JSON ({error})"
    else:
        if isinstance(content, dict):
            return content
        found = f"a JSON {type(content).__name__}"
    prefix = f"{field}: " if field else ""
    raise InputError(f"{prefix}{path}: expected a JSON object, found {found}")


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl.

    Raises:
      InputError: an unreadable file, or an invalid record; the message names the line.
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
    """Open a file without ever blocking on a named pipe.

    Raises:
      OSError: the errors of `open`; also a pipe, or a device opened for reading.
    """

    def opener(name: str, flags: int) -> int:
        number = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        kind = os.fstat(number).st_mode
        # Writing to a device fails with its own error; reading one may never end.
        reads = "r" in mode or "+" in mode
        if stat.S_ISFIFO(kind) or (reads and not stat.S_ISREG(kind)):
            os.close(number)
            raise OSError(errno.EINVAL, "expected a regular file", str(path))
        return number

    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, opener=opener, encoding=encoding)


@contextlib.contextmanager
def replaced(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file; at the end, sync it and rename it to ``path``.

    Args:
      path: path of the file; an existing file is replaced atomically.
      mode: "wb", or "w" for text in UTF-8.

    Yields:
      The open file. After an error, ``path`` is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    with open_regular(temporary, mode) as file:
        yield file
    publish(temporary, path)


def publish(temporary: Path, path: Path) -> None:
    """Sync a complete file, or a folder of files, and rename it to ``path``."""
    files = temporary.iterdir() if temporary.is_dir() else ()
    for each in (*files, temporary):
        sync(each)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file's content, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file of a run atomically and durably by `replaced`."""
    with explained(path.parent), replaced(path, "w") as file:
        file.write(text)


def write_json(path: Path, content: Any) -> None:
    """Write a value as indented JSON by `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def json_ready(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, by None.

    Example:
      >>> json_ready({"loss": float("nan"), "scores": [0.5]})
      {'loss': None, 'scores': [0.5]}
    """
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, then sync its files and rename it to ``folder``.

    Args:
      folder: the result; replaced if it exists.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    publish(partial, folder)
