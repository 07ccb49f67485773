"""CIFAR-100 from its Python archive.

The pickles are read by a restricted unpickler that builds only lists, dicts, bytes and
uint8 arrays.
"""

import io
import logging
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from rdrop_jax.data import prepared
from rdrop_jax.errors import InputError
from rdrop_jax.files import archives

_logger = logging.getLogger(__name__)
_LIMIT = 2**29  # bytes per member; the largest is 155 MB
_RAISED = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True)
class Expected:
    """Expected contents of an archive.

    Attributes:
      source: the archive.
      rows: images per split.
      classes: number of fine classes.
    """

    source: archives.Source
    rows: dict[str, int]
    classes: int


CIFAR100 = Expected(
    archives.Source(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
    {"train": 50_000, "test": 10_000},
    100,
)


def prepare(
    folder: Path,
    files: list[Path],
    expected: Expected = CIFAR100,
) -> Path:
    """Write CIFAR-100 as PNG images with fine labels, in the order of the archive.

    Args:
      folder: output folder.
      files: the archive, or folders that contain it.
      expected: counts and checksums.

    Returns:
      The folder.

    Raises:
      InputError: the archive differs from the published one.
    """
    paths = archives.locate((expected.source,), files)
    path = paths[expected.source.file]
    sums = archives.verify((expected.source,), paths)
    tables = _tables(path, ("meta", *expected.rows))
    names = tables["meta"].get(b"fine_label_names")
    if not isinstance(names, list) or len(names) != expected.classes:
        raise InputError(f"{path}: expected {expected.classes} names of fine labels")
    writer = prepared.Writer(folder, sums)
    for split, rows in expected.rows.items():
        pixels, labels = _checked(
            tables[split], rows, expected.classes, f"{path}:{split}"
        )

        def records(
            start: int, pixels: np.ndarray = pixels, labels: list[int] = labels
        ) -> Iterable[bytes]:
            for image, label in zip(pixels[start:], labels[start:], strict=True):
                yield prepared.record(label, _png(image))

        for done in writer.write(split, rows, records, shard=10_000):
            _logger.info("%s: %d of %d images", split, done, rows)
    classes = [
        name.decode() if isinstance(name, bytes) else str(name) for name in names
    ]
    return writer.finish(classes)


def _tables(path: Path, wanted: tuple[str, ...]) -> dict[str, dict[Any, Any]]:
    found = {}
    with archives.open_tar(path) as archive:
        for member in archives.members(archive, str(path)):
            name = Path(member.name).name
            if name in wanted:
                content = archives.read(archive, member, str(path), _LIMIT)
                found[name] = unpickle(content, f"{path}:{member.name}")
    if missing := set(wanted) - set(found):
        raise InputError(f"{path}: expected files {wanted}, found no {sorted(missing)}")
    return found


def _checked(
    table: dict[Any, Any], rows: int, classes: int, origin: str
) -> tuple[np.ndarray, list[int]]:
    pixels, labels = table.get(b"data"), table.get(b"fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.shape != (rows, 3072):
        found = getattr(pixels, "shape", type(pixels).__name__)
        raise InputError(f"{origin}: expected data [{rows}, 3072], found {found}")
    if not isinstance(labels, list) or len(labels) != rows:
        raise InputError(f"{origin}: expected {rows} fine labels")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise InputError(
                f"{origin}: expected labels from 0 to {classes - 1}, found {label!r} "
                f"in row {row}"
            )
    return pixels.reshape(rows, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(out, "PNG")
    return out.getvalue()


def unpickle(content: bytes, origin: str) -> dict[Any, Any]:
    """Unpickle a dict of lists, bytes, numbers and uint8 arrays.

    Every callable that a pickle may name is bound to a function of this module, so no
    other code can run.

    Raises:
      InputError: any other content.
    """
    try:
        table = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _RAISED as error:
        raise InputError(
            f"{origin}: expected a pickle of plain lists and one array: {error}"
        ) from error
    if not isinstance(table, dict):
        raise InputError(f"{origin}: expected a dict, found {type(table).__name__}")
    return {
        key: value.array if isinstance(value, _Array) else value
        for key, value in table.items()
    }


class _Dtype:
    """Replacement for numpy.dtype("u1") in a pickle."""

    def __init__(self, kind: Any, *rest: Any) -> None:
        if kind not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"expected dtype u1, found {kind!r}")

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Replacement for a numpy array in a pickle, built from bytes of its size."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("expected an array of uint8")
        flat = np.frombuffer(content, np.uint8)
        self.array = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _Unpickler(pickle.Unpickler):
    _CALLS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._CALLS:
            raise pickle.UnpicklingError(f"a call of {module}.{name} is not admitted")
        return self._CALLS[module, name]
