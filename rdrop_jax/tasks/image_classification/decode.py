"""Decoding of image files, which may be untrusted."""

import io
import logging
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rdrop_jax.data.batches import Row
from rdrop_jax.data.sources import ImageRows
from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs
from rdrop_jax.tasks.image_classification.image_files import FORMATS
from rdrop_jax.tasks.image_classification.images import picture

_logger = logging.getLogger(__name__)

_MODES = {1: "L", 3: "RGB"}
# Exceptions that PIL raises on files that are corrupt or too large.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(InputError):
    """Error for an image that cannot be read."""


def decode(image: Any, channels: int) -> Image.Image | np.ndarray:
    """Decode an image.

    Args:
      image: path, bytes of a file, PIL image, uint8 pixels [height, width, 1 or 3], or
        None, as datasets have it for a missing image.
      channels: 1 for grey, 3 for colour; other images are converted.

    Returns:
      The array itself if it has ``channels`` channels, else a fully loaded PIL image.

    Raises:
      BadImage: missing, corrupt, in an unsupported format, or with too many pixels.
    """
    if image is None:
        raise BadImage("expected an image, found none")
    if isinstance(image, np.ndarray):
        if image.shape[-1] == channels:
            return image
        return converted(picture(image), channels)
    try:
        if isinstance(image, Image.Image):
            return converted(image, channels)
        file = io.BytesIO(image) if isinstance(image, bytes) else Path(image)
        with Image.open(file, formats=FORMATS) as opened:
            return converted(opened, channels)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("expected an image, found none: No such file") from error
    except _DAMAGED as error:
        # Strip the memory address that PIL reports for an unidentified file.
        reason = str(error).split(" <_io")[0]
        if isinstance(image, str | Path) and lfs.is_pointer(Path(image)):
            reason = "it is a git-lfs pointer. Run `git lfs pull`"
        raise BadImage(
            f"expected an image ({', '.join(FORMATS)}), found one that cannot be read: "
            f"{reason}"
        ) from error


def converted(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image to 8-bit grey or colour; scale 16 bits, drop transparency.

    Args:
      image: image of any mode but 32 bits, whose range is unknown. 16-bit PGM files,
        which Pillow opens as 32 bits, are scaled.
      channels: 1 for grey, 3 for colour.

    Raises:
      BadImage: a 32-bit image.
    """
    deep = image.mode.startswith("I;16")
    deep |= image.mode == "I" and image.format == "PPM"
    if image.mode in ("I", "F") and not deep:
        raise BadImage(
            f"expected 8 or 16 bits per channel, found 32 (mode {image.mode}). Convert "
            "the image"
        )
    if deep:  # convert() would clip values above 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert(_MODES[channels])


class Decoded:
    """Rows with decoded images and validated labels.

    Args:
      rows: the source.
      channels: number of channels of the pixels.
      num_classes: number of classes of the model.
      skip_bad: replace an unreadable image by the next readable one and set
        ``"where": False`` in its row.

    Attributes:
      skipped: reasons by name of the images skipped so far.
    """

    def __init__(
        self, rows: ImageRows, *, channels: int, num_classes: int, skip_bad: bool
    ) -> None:
        self._rows = rows
        self._channels = channels
        self._num_classes = num_classes
        self._skip_bad = skip_bad
        self._lock = threading.Lock()
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Decoded({self._rows!r})"

    def __getitem__(self, row: int) -> Row:
        for ahead in range(len(self)):
            candidate = (row + ahead) % len(self)
            try:
                return self._read(candidate) | {"where": ahead == 0}
            except BadImage as error:
                self._skip(self._rows.name(candidate), error)
        raise InputError(f"{self._rows!r}: expected readable images, found none")

    def raw(self, row: int) -> Any:
        """Return the image of a row as its source provides it, not decoded."""
        return self._rows[row]["image"]

    def _read(self, row: int) -> Row:
        found = self._rows[row]
        label = int(found["label"])
        if not 0 <= label < self._num_classes:
            raise InputError(
                f"{self._rows.name(row)}: expected a label from 0 to data.num_classes "
                f"- 1 = {self._num_classes - 1}, found {label}"
            )
        image = decode(found["image"], self._channels)
        said = {k: found[k] for k in ("labelled",) if k in found}
        return {"image": image, "label": np.int32(label)} | said

    def _skip(self, name: str, error: BadImage) -> None:
        if not self._skip_bad:
            raise InputError(
                f"{name}: {error}. Set --config.data.skip_bad=true to skip such images"
            ) from error
        with self._lock:
            if name not in self.skipped:
                self.skipped[name] = str(error)
                _logger.warning("left out: %s: %s", name, error)
