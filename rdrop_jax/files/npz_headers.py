"""Arrays of .npz files, read after their headers are validated."""

import contextlib
import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs, memory

# Errors that zipfile and numpy raise for a corrupt file.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    RecursionError,
    SyntaxError,
    tokenize.TokenError,
)
# Numpy stores bfloat16 as untyped two-byte values.
_BFLOAT16 = np.dtype("V2")
# Weights and photographs compress less than this; only zeros compress more.
_MAX_RATIO, _SMALL = 100, 2**26


def check_headers(path: Path, field: str = "") -> None:
    """Check the headers of an .npz file against file sizes and free memory.

    Args:
      path: path of the file.
      field: config field for error messages.

    Raises:
      InputError: no arrays, pickled objects, unknown types, inconsistent sizes, or too
        little memory.
    """
    what = f"{field}: {path}" if field else str(path)
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if not entries:
            raise InputError(f"{what}: expected arrays, found an empty file")
        size = sum(entry.file_size for entry in entries)
        if size > max(_SMALL, _MAX_RATIO * path.stat().st_size):
            raise InputError(
                f"{what}: expected arrays, found {size} bytes packed into "
                f"{path.stat().st_size}"
            )
        memory.check_fits(size, what)
        for entry in entries:
            with archive.open(entry) as file:
                _check_header(file, entry.file_size, f"{what}: {entry.filename}")


def _check_header(file: IO[bytes] | io.BufferedIOBase, size: int, what: str) -> None:
    version = np.lib.format.read_magic(file)
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise InputError(
            f"{what}: expected an array of numbers, found pickled objects, which "
            "are not read"
        )
    if dtype.kind == "V" and dtype != _BFLOAT16:
        raise InputError(
            f"{what}: expected floats (bfloat16 as V2), got the type {dtype}"
        )
    rest = size - file.tell()
    if math.prod(shape) * dtype.itemsize != rest:
        raise InputError(f"{what}: expected the bytes of {dtype} {shape}, found {rest}")


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a checked file, with untyped two-byte values as bfloat16."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {
        name: x.view(ml_dtypes.bfloat16) if x.dtype == _BFLOAT16 else x
        for name, x in arrays.items()
    }


def load(path: Path, only: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of an .npz file.

    Args:
      path: path of the file; nothing is unpickled.
      only: names of the arrays; None reads all.

    Raises:
      InputError: a corrupt or unreadable file.
    """
    lfs.check_not_pointer(path)
    with _explained(path, ".npz file of plain arrays"):
        check_headers(path)
        with np.load(path, allow_pickle=False) as file:
            names = [n for n in file.files if only is None or n in only]
            return {name: file[name] for name in names}


def load_array(path: Path) -> np.ndarray:
    """Read the array of an .npy file.

    Raises:
      InputError: a corrupt or unreadable file.
    """
    lfs.check_not_pointer(path)
    with _explained(path, ".npy file of one plain array"):
        size = path.stat().st_size
        memory.check_fits(size, str(path))
        with path.open("rb") as file:
            _check_header(file, size, str(path))
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)


@contextlib.contextmanager
def _explained(path: Path, expected: str) -> Iterator[None]:
    """Convert the errors of a corrupt file to an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, MemoryError, *DAMAGE) as error:
        raise InputError(
            f"{path}: expected an {expected}, found one that cannot be read: {error}"
        ) from error
