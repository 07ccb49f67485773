"""Image transforms in numpy."""

import math

import numpy as np
from jaxtyping import Float, Num, UInt8


def normalize(
    image: Num[np.ndarray, "height width channels"], mean: float, std: float
) -> Float[np.ndarray, "height width channels"]:
    """Pixels from 0..255 to [0, 1], then ``(x - mean) / std``."""
    return ((image.astype(np.float32) / 255) - mean) / std


def random_shift(
    image: UInt8[np.ndarray, "height width channels"],
    pixels: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "height width channels"]:
    """Moves an image by up to ``pixels`` along each side, fractions interpolated.

    Args:
      image: pixels from 0 to 255.
      pixels: largest move; what is uncovered becomes 0.
      rng: draws the move.

    Returns:
      The moved image.
    """
    moved = image.astype(np.float32)
    if pixels == 0:
        return moved
    margin = math.ceil(pixels)
    for axis, move in enumerate(rng.uniform(-pixels, pixels, size=2)):
        size = image.shape[axis]
        whole = math.floor(move)
        part = np.float32(move - whole)
        edge = [(0, 0)] * 3
        edge[axis] = (margin, margin + 1)
        padded = np.pad(moved, edge)
        near, far = (
            np.take(padded, range(start, start + size), axis)
            for start in (margin + whole, margin + whole + 1)
        )
        moved = (1 - part) * near + part * far
    return moved
