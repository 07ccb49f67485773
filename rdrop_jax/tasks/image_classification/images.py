"""Image transforms in PIL and numpy; randomness comes only from the given rng."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8
from ml_collections import ConfigDict
from PIL import Image

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification.randaugment import LEVELS, rand_augment

Picture = Image.Image | np.ndarray
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
CROPS = ("none", "random", "pad")
_TRIES = 10


def normalize(
    image: Num[np.ndarray, "height width channels"],
    mean: Sequence[float],
    std: Sequence[float],
) -> Float[np.ndarray, "height width channels"]:
    """Scale pixels from 0..255 to [0, 1], then ``(x - mean) / std`` per channel."""
    x = image.astype(np.float32)
    x /= np.float32(255)
    x -= np.asarray(mean, np.float32)
    x /= np.asarray(std, np.float32)
    return x


def check_transforms(data: ConfigDict) -> None:
    """Check the config fields of the transforms.

    Raises:
      InputError: an invalid field.
    """
    channels = (1, data.channels)
    mean, std = _are_numbers(data.mean, *channels), _are_numbers(data.std, *channels)
    area, ratio = _are_numbers(data.crop_area, 2), _are_numbers(data.crop_ratio, 2)
    for field, fits, expected in (
        ("channels", data.channels in (1, 3), "1 or 3"),
        ("image_size", data.image_size >= 1, "at least 1"),
        ("mean", mean, "a number for all channels, or for each"),
        (
            "std",
            std and min(data.std) > 0,
            "a number above 0 for all channels, or for each",
        ),
        ("crop", data.crop in CROPS, f"one of {', '.join(CROPS)}"),
        (
            "crop_area",
            area and 0 < data.crop_area[0] <= data.crop_area[1] <= 1,
            "minimum and maximum fraction, in (0, 1]",
        ),
        (
            "crop_ratio",
            ratio and 0 < data.crop_ratio[0] <= data.crop_ratio[1],
            "minimum and maximum, above 0",
        ),
        ("pad", data.pad >= 0, "at least 0"),
        ("randaugment", data.randaugment >= 0, "at least 0"),
        ("magnitude", 0 <= data.magnitude <= LEVELS, f"from 0 to {LEVELS}"),
        ("shift", data.shift >= 0, "at least 0"),
        ("eval_crop", 0 <= data.eval_crop <= 1, "from 0 to 1"),
        (
            "interpolation",
            data.interpolation in INTERPOLATIONS,
            "one of " + ", ".join(INTERPOLATIONS),
        ),
        ("workers", data.workers >= 0, "at least 0"),
    ):
        if not fits:
            raise InputError(
                f"data.{field}: expected {expected}, found {data[field]!r}"
            )


def _are_numbers(values: Sequence[Any], *counts: int) -> bool:
    """Return whether the values are numbers, as many as one of ``counts``."""
    are = [type(v) in (int, float) and math.isfinite(v) for v in values]
    return len(values) in counts and all(are)


def make_train_transform(
    data: ConfigDict,
) -> Callable[[Picture, np.random.Generator], Float[np.ndarray, "size size channels"]]:
    """Build the training transform.

    Steps, in order: crop (``data.crop``) to ``data.image_size``, flip, RandAugment,
    shift, normalization.

    Args:
      data: the config's ``data``.

    Returns:
      Pure function ``(image, rng) -> pixels``.
    """
    size, filter = data.image_size, INTERPOLATIONS[data.interpolation]

    def transform(image: Picture, rng: np.random.Generator) -> np.ndarray:
        if data.crop == "random":
            image = random_resized_crop(
                image, size, rng, data.crop_area, data.crop_ratio, filter
            )
        else:
            image = squeeze(image, size, filter)
        if data.crop == "pad":
            image = pad_crop(pixels(image), data.pad, rng)
        if data.flip and rng.random() < 0.5:
            image = pixels(image)[:, ::-1]
        if data.randaugment:
            image = rand_augment(picture(image), data.randaugment, data.magnitude, rng)
        moved = random_shift(pixels(image), data.shift, rng)
        return normalize(moved, data.mean, data.std)

    return transform


def make_eval_transform(
    data: ConfigDict,
) -> Callable[[Picture], Float[np.ndarray, "size size channels"]]:
    """Build the evaluation transform.

    With ``data.eval_crop`` 0 the full image is resized to a square. Otherwise a central
    square is resized, whose side is that fraction of the shorter side.

    Args:
      data: the config's ``data``.

    Returns:
      Function ``image -> pixels``.
    """
    size, filter = data.image_size, INTERPOLATIONS[data.interpolation]

    def transform(image: Picture) -> np.ndarray:
        if data.eval_crop:
            image = central_crop(image, size, data.eval_crop, filter)
        else:
            image = squeeze(image, size, filter)
        return normalize(pixels(image), data.mean, data.std)

    return transform


def picture(image: Picture) -> Image.Image:
    """Convert to a PIL image."""
    if isinstance(image, Image.Image):
        return image
    grey = image.shape[-1] == 1
    return Image.fromarray(image[..., 0] if grey else np.ascontiguousarray(image))


def pixels(image: Picture) -> np.ndarray:
    """Convert to an array [height, width, channels]."""
    if isinstance(image, np.ndarray):
        return image
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def _extent(image: Picture) -> tuple[int, int]:
    """Return width and height."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    return image.size


def squeeze(image: Picture, size: int, filter: Image.Resampling) -> Picture:
    """Resize the full image to a square, ignoring its aspect ratio."""
    if _extent(image) == (size, size):
        return image
    return picture(image).resize((size, size), filter)


def central_crop(
    image: Picture, size: int, part: float, filter: Image.Resampling
) -> Picture:
    """Resize the central square, of side ``part * min(width, height)``, to ``size``."""
    width, height = _extent(image)
    if part == 1 and width == height == size:
        return image
    side = part * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return picture(image).resize((size, size), filter, box=box)


def random_resized_crop(
    image: Picture,
    size: int,
    rng: np.random.Generator,
    area: tuple[float, float],
    ratio: tuple[float, float],
    filter: Image.Resampling,
) -> Picture:
    """Crop a random part of an image and resize it to a square (Szegedy et al., 2015).

    Args:
      image: the image.
      size: pixels per side of the result.
      rng: random generator.
      area: minimum and maximum fraction of the image's area, sampled uniformly.
      ratio: minimum and maximum width / height, sampled log-uniformly.
      filter: interpolation filter.

    Returns:
      The crop; after ten draws that do not fit, the largest central crop that fits.
    """
    width, height = _extent(image)
    for _ in range(_TRIES):
        wanted = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(wanted * shape)), round(math.sqrt(wanted / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(width - w + 1))
            top = int(rng.integers(height - h + 1))
            break
    else:
        shape = min(max(width / height, ratio[0]), ratio[1])
        w, h = min(width, round(height * shape)), min(height, round(width / shape))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return picture(image).resize((size, size), filter, box=box)


def pad_crop(
    image: UInt8[np.ndarray, "height width channels"],
    margin: int,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "height width channels"]:
    """Pad with zeros, then crop randomly to the original size (He et al., 2016)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)))
    top, left = rng.integers(2 * margin + 1, size=2)
    return padded[top : top + height, left : left + width]


def random_shift(
    image: UInt8[np.ndarray, "height width channels"],
    pixels: float,
    rng: np.random.Generator,
) -> Num[np.ndarray, "height width channels"]:
    """Shift an image by up to ``pixels`` along each axis, with linear interpolation.

    Args:
      image: pixels from 0 to 255.
      pixels: maximum shift; uncovered pixels become 0.
      rng: random generator.

    Returns:
      The shifted image, or the image itself if ``pixels`` is 0.
    """
    if pixels == 0:
        return image
    moved = image.astype(np.float32)
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
