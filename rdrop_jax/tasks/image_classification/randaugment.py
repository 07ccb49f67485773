"""RandAugment (Cubuk et al., 2020) on PIL images."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LEVELS = 10  # maximum magnitude
Op = Callable[[Image.Image, float, float], Image.Image]


def rand_augment(
    image: Image.Image, operations: int, magnitude: float, rng: np.random.Generator
) -> Image.Image:
    """Apply random operations from the paper's fourteen, drawn with replacement.

    Geometric operations fill with black. Signs are random where an operation has one.

    Args:
      image: grey or RGB image.
      operations: number of operations.
      magnitude: strength of each operation, from 0 to 10.
      rng: random generator.

    Returns:
      The augmented image, of the same size.
    """
    for number in rng.integers(len(OPERATIONS), size=operations):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = OPERATIONS[number](image, magnitude / LEVELS, sign)
    return image


def _enhanced(kind: Callable[[Image.Image], "ImageEnhance._Enhance"]) -> Op:
    return lambda image, level, sign: kind(image).enhance(1 + sign * 0.9 * level)


def _affine(*matrix: float) -> Op:
    """Affine map at ``level = sign = 1``; offsets are fractions of width and height."""

    def apply(image: Image.Image, level: float, sign: float) -> Image.Image:
        a, b, c, d, e, f = (sign * level * x for x in matrix)
        width, height = image.size
        data = (1 + a, b, c * width, d, 1 + e, f * height)
        return image.transform(image.size, Image.Transform.AFFINE, data)

    return apply


OPERATIONS: tuple[Op, ...] = (
    lambda image, level, sign: image,
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: image.rotate(sign * 30 * level),
    lambda image, level, sign: ImageOps.solarize(image, round(256 * (1 - level))),
    lambda image, level, sign: ImageOps.posterize(image, 8 - round(4 * level)),
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    _affine(0.0, 0.3, 0.0, 0.0, 0.0, 0.0),  # shear along x
    _affine(0.0, 0.0, 0.0, 0.3, 0.0, 0.0),  # shear along y
    _affine(0.0, 0.0, 0.3, 0.0, 0.0, 0.0),  # translate along x
    _affine(0.0, 0.0, 0.0, 0.0, 0.0, 0.3),  # translate along y
)
