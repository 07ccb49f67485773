"""Image transforms in numpy."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def normalize(
    image: UInt8[np.ndarray, "height width channels"], mean: float, std: float
) -> Float[np.ndarray, "height width channels"]:
    """Pixels from 0..255 to [0, 1], then ``(x - mean) / std``."""
    return ((image.astype(np.float32) / 255) - mean) / std


def random_shift(
    image: Shaped[np.ndarray, "height width channels"],
    pixels: int,
    rng: np.random.Generator,
) -> Shaped[np.ndarray, "height width channels"]:
    """Moves an image by up to ``pixels`` along each side; what is uncovered is 0."""
    if pixels == 0:
        return image
    height, width, _ = image.shape
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    return padded[top : top + height, left : left + width]
