"""Views of images within the train step: crops, and RandAugment.

RandAugment (Cubuk et al., 2020, arXiv 1909.13719) has 13 of the 14 operations of
`rdrop_jax.tasks.image_classification.randaugment`, with the same results up to one
level of a pixel. Equalize, which needs a histogram per image and channel, is left out.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32
from ml_collections import ConfigDict

from rdrop_jax.core.dropout import hash_bits
from rdrop_jax.core.passes import Batch, Key, View
from rdrop_jax.tasks.field_checks import IMAGE_VIEWS, views_rate

_OPERATIONS = 2  # of RandAugment per image
_GREY = (19595, 38470, 7471)  # weights of red, green and blue, of 65536
_SMOOTH = ((1, 1, 1), (1, 5, 1), (1, 1, 1))
Images = Float[Array, "batch height width channels"]
# One number per image, [batch, 1, 1, 1].
Signs = Float[Array, "batch 1 1 1"]


def make_views(config: ConfigDict) -> View | None:
    """Make the view of ``rdrop.views``; None if the field is "none".

    "crop" pads with black, crops at random and, if ``data.flip`` is set, flips half of
    the images. "randaugment" does the same at the default rate, then applies two
    operations of RandAugment. The host has normalized the images; black is pixel 0.
    """
    rate = views_rate(config.rdrop, IMAGE_VIEWS)
    if rate is None:
        return None
    data, augments = config.data, config.rdrop.views == "randaugment"
    mean, std = (np.float32(x).reshape(1, 1, 1, -1) for x in (data.mean, data.std))
    margin = round(data.image_size * (IMAGE_VIEWS["crop"] if augments else rate))

    def view(batch: Batch, key: Key) -> Batch:
        of_crop, of_operations = jax.random.split(key)
        images = batch["image"]
        bits = hash_bits(of_crop, (len(images), 3))
        moved = (bits[:, :2] % jnp.uint32(2 * margin + 1)).astype(int) - margin
        mirrored = (bits[:, 2] >= jnp.uint32(2**31)) & data.flip
        images = crop(images, moved, mirrored, jnp.asarray(-mean / std))
        if augments:
            levels = jnp.round((images * std + mean) * 255)
            bits = hash_bits(of_operations, (len(images), _OPERATIONS, 2))
            images = (rand_augment(levels, bits, rate) / 255 - mean) / std
        return batch | {"image": images}

    return view


def crop(
    images: Images,
    moved: Int[Array, "batch 2"],
    mirrored: Array,
    black: Float[Array, "1 1 1 _"],
) -> Images:
    """Move images by whole pixels, and mirror some of them.

    Args:
      images: pixels.
      moved: rows and columns of the first pixel of the crop.
      mirrored: True on images [batch] to mirror from left to right.
      black: value of pixels outside of the image, per channel.
    """
    _, height, width, _ = images.shape
    columns = jnp.arange(width)[None]
    columns = jnp.where(mirrored[:, None], width - 1 - columns, columns)
    rows = jnp.arange(height)[None] + moved[:, :1]
    columns = columns + moved[:, 1:]
    return _gathered(images, rows[:, :, None], columns[:, None], black)


def rand_augment(
    images: Images, bits: UInt32[Array, "batch operations 2"], level: float
) -> Images:
    """Apply random operations, drawn with replacement.

    Args:
      images: whole pixels from 0 to 255.
      bits: random bits, of the number of each operation and of its sign.
      level: strength of each operation, from 0 to 1.

    Returns:
      Images like ``images``.
    """
    numbers = bits[..., 0] % jnp.uint32(len(OPERATIONS))
    signs = jnp.where(bits[..., 1] >= jnp.uint32(2**31), 1.0, -1.0)
    for i in range(bits.shape[1]):
        sign = signs[:, i, None, None, None]
        before = images
        for number, operation in enumerate(OPERATIONS.values()):
            chosen = (numbers[:, i] == number)[:, None, None, None]
            images = jnp.where(chosen, operation(before, level, sign), images)
    return images


def _gathered(
    images: Images,
    rows: Int[Array, "batch #height #width"],
    columns: Int[Array, "batch #height #width"],
    black: Array,
) -> Images:
    """Return pixels at integer positions; ``black`` outside of the image."""
    batch, height, width, channels = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    flat = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
    pixels = images.reshape(batch, -1, channels)
    found = jnp.take_along_axis(pixels, flat.reshape(batch, -1, 1), axis=1)
    return jnp.where(inside[..., None], found.reshape(images.shape), black)


def _affine(*matrix: float) -> Callable[[Images, float, Signs], Images]:
    """Affine map at ``level = sign = 1``; offsets are fractions of width and height."""

    def apply(images: Images, level: float, sign: Signs) -> Images:
        _, height, width, _ = images.shape
        a, b, c, d, e, f = (sign[..., 0] * level * x for x in matrix)
        return _mapped(images, (1 + a, b, c * width, d, 1 + e, f * height))

    return apply


def _rotate(images: Images, level: float, sign: Signs) -> Images:
    _, height, width, _ = images.shape
    angle = sign[..., 0] * level * math.radians(30)
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), width / 2, height / 2
    offsets = x - cos * x + sin * y, y - sin * x - cos * y
    return _mapped(images, (cos, -sin, offsets[0], sin, cos, offsets[1]))


def _mapped(images: Images, matrix: tuple[Array, ...]) -> Images:
    """Take the nearest pixel at ``matrix @ (x, y, 1)`` of each pixel centre."""
    a, b, c, d, e, f = matrix
    x = (jnp.arange(images.shape[2]) + 0.5)[None, None]
    y = (jnp.arange(images.shape[1]) + 0.5)[None, :, None]
    columns, rows = a * x + b * y + c, d * x + e * y + f
    rows, columns = jnp.floor(rows).astype(int), jnp.floor(columns).astype(int)
    return _gathered(images, rows, columns, jnp.zeros((1, 1, 1, 1), images.dtype))


def _blend(plain: Array, images: Images, level: float, sign: Signs) -> Images:
    """Interpolate from ``plain`` to the images and beyond, as PIL's enhancers do."""
    factor = 1 + sign * 0.9 * level
    return jnp.floor(jnp.clip(plain + factor * (images - plain), 0, 255))


def _grey(images: Images) -> Float[Array, "batch height width 1"]:
    if images.shape[-1] == 1:
        return images
    weights = jnp.array(_GREY, images.dtype)
    total = jnp.sum(images * weights[None, None, None], axis=-1, keepdims=True)
    return jnp.floor((total + 32768) / 65536)


def _contrast(images: Images, level: float, sign: Signs) -> Images:
    mean = jnp.mean(_grey(images), axis=(1, 2, 3), keepdims=True)
    return _blend(jnp.floor(mean + 0.5), images, level, sign)


def _sharpness(images: Images, level: float, sign: Signs) -> Images:
    _, height, width, _ = images.shape
    near = sum(
        images[:, i : height - 2 + i, j : width - 2 + j] * (_SMOOTH[i][j] / 13)
        for i in range(3)
        for j in range(3)
    )
    smooth = images.at[:, 1:-1, 1:-1].set(jnp.floor(jnp.asarray(near) + 0.5))
    return _blend(smooth, images, level, sign)


def _autocontrast(images: Images, level: float, sign: Signs) -> Images:
    low = jnp.min(images, axis=(1, 2), keepdims=True)
    spread = jnp.max(images, axis=(1, 2), keepdims=True) - low
    scaled = jnp.floor((images - low) * 255 / jnp.maximum(spread, 1))
    return jnp.where(spread > 0, scaled, images)


def _solarize(images: Images, level: float, sign: Signs) -> Images:
    return jnp.where(images < round(256 * (1 - level)), images, 255 - images)


def _posterize(images: Images, level: float, sign: Signs) -> Images:
    step = 2 ** round(4 * level)
    return jnp.floor(images / step) * step


# By name: (images, level from 0 to 1, signs) -> images.
OPERATIONS: dict[str, Callable[[Images, float, Signs], Images]] = {
    "identity": lambda images, level, sign: images,
    "autocontrast": _autocontrast,
    "rotate": _rotate,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": lambda images, level, sign: _blend(_grey(images), images, level, sign),
    "contrast": _contrast,
    "brightness": lambda images, level, sign: _blend(
        jnp.zeros((), images.dtype), images, level, sign
    ),
    "sharpness": _sharpness,
    "shear_x": _affine(0.0, 0.3, 0.0, 0.0, 0.0, 0.0),
    "shear_y": _affine(0.0, 0.0, 0.0, 0.3, 0.0, 0.0),
    "translate_x": _affine(0.0, 0.0, 0.3, 0.0, 0.0, 0.0),
    "translate_y": _affine(0.0, 0.0, 0.0, 0.0, 0.0, 0.3),
}
