"""Label prediction for images."""

import functools
import itertools
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.data.batches import Row, make_map, pad, stack
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines, npz_headers
from rdrop_jax.tasks.classification import class_answer
from rdrop_jax.tasks.image_classification import image_files, images
from rdrop_jax.tasks.image_classification.decode import (
    BadImage,
    Decoded,
    decode,
)
from rdrop_jax.training.mesh import replicated, shard_batch
from rdrop_jax.training.task import Predictor

_logger = logging.getLogger(__name__)


def make_predictor(
    config: ConfigDict, forward: Forward, split: Callable[[str], Decoded], mesh: Mesh
) -> Predictor:
    """Make a predictor of labels with probabilities, and class names if known.

    Args:
      config: config of the run.
      forward: ``(params, batch, key | None) -> logits``.
      split: ``name -> rows`` of a split.
      mesh: device mesh of the parameters.

    Returns:
      The predictor; `prepared` lists the supported inputs.
    """
    names = tuple(config.data.classes)
    size = config.eval.batch_size
    prepare = functools.partial(prepared, config.data)
    mapped = make_map(config.data.workers)

    # Every process reads all outputs.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def probabilities(params: Params, batch: Batch) -> jax.Array:
        logits = forward(params, batch, None).astype(jnp.float32)
        return jax.nn.softmax(logits, axis=-1)

    def answer(number: int, image: Any, p: np.ndarray) -> dict[str, Any]:
        found: dict[str, Any] = {"row": number}
        if isinstance(image, str | Path):
            found["input"] = str(image)
        found |= class_answer(p, names)
        return found | {"name": found["label"]}  # the key of version 0.1

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        numbered = enumerate(inputs)
        while pairs := list(itertools.islice(numbered, size)):
            numbers, chunk = zip(*pairs, strict=True)
            batch = stack(list(mapped(prepare, numbers, chunk)))
            padded = pad(batch, size)
            found = jax.device_get(
                probabilities(params, shard_batch(mesh, padded, full=True))
            )
            yield from map(answer, numbers, chunk, found)

    def rows(name: str) -> Iterator[Any]:
        source = split(name)
        return (source.raw(i) for i in range(len(source)))

    return Predictor(read=read_images, rows=rows, run=run)


def prepared(data: ConfigDict, number: int, image: Any) -> Row:
    """Convert an input to a row of a batch.

    Args:
      data: the config's ``data``.
      number: index of the input, for messages.
      image: a path, the bytes of an image file, a PIL image, or pixels: uint8 of any
        size, grey or colour, or numbers from 0 to 255 as arrays or nested lists of the
        model's shape.

    Returns:
      The row of a batch.

    Raises:
      InputError: the image is invalid; names the image and the problem.
    """
    transform = images.make_eval_transform(data)
    if isinstance(image, str | Path | bytes | Image.Image):
        name = f"image {number}" if not isinstance(image, str | Path) else str(image)
        try:
            image = decode(image, data.channels)
        except BadImage as error:
            raise InputError(f"--input: {name}: {error}") from error
        return {"image": transform(image)}
    shape = (data.image_size, data.image_size, data.channels)
    try:
        pixels = np.asarray(image)
    except ValueError as error:
        raise InputError(
            f"--input: expected rows of equal length in image {number}, found "
            "different lengths"
        ) from error
    if pixels.ndim == 2 and (data.channels == 1 or pixels.dtype == np.uint8):
        pixels = pixels[..., None]
    integer = np.issubdtype(pixels.dtype, np.integer)
    bytes_ = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size
    if bytes_ and pixels.shape[-1] in (1, 3):
        return {"image": transform(decode(pixels, data.channels))}
    if pixels.shape != shape:
        raise InputError(
            f"--input: expected images {shape} of numbers from 0 to 255, or uint8 of "
            f"another size, found {pixels.dtype} {np.shape(image)} in image {number}"
        )
    if integer and pixels.min() >= 0 and pixels.max() <= 255:
        return {"image": transform(pixels.astype(np.uint8))}
    known = np.issubdtype(pixels.dtype, np.floating)
    # Written so that NaN fails the check.
    if not known or not np.all((pixels >= 0) & (pixels <= 255)):
        raise InputError(
            f"--input: expected numbers from 0 to 255 in image {number}, found "
            f"{'values out of range' if known or integer else pixels.dtype}"
        )
    return {"image": _fractions(data, pixels)}


def _fractions(data: ConfigDict, pixels: np.ndarray) -> np.ndarray:
    """Apply the evaluation transform to float pixels, without rounding them."""
    if data.eval_crop:  # Pillow resizes float images one channel at a time
        filter = images.INTERPOLATIONS[data.interpolation]
        planes = [
            images.central_crop(
                Image.fromarray(plane), data.image_size, data.eval_crop, filter
            )
            for plane in np.moveaxis(pixels.astype(np.float32), -1, 0)
        ]
        pixels = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return images.normalize(pixels, data.mean, data.std)


def read_images(path: str) -> Iterator[Any]:
    """Read the images of an ``--input`` argument.

    Args:
      path: an image file; a folder of them; a .txt file with a path per line, relative
        to the file's folder (surrounding white space is stripped unless a file with
        that name exists; bytes are used unchanged as the file name); a .npy array;
        JSON lines with one nested list of pixels each, or "-" for standard input.

    Yields:
      Paths, arrays or nested lists, with pixels from 0 to 255.

    Raises:
      InputError: the file is missing, or a line is not JSON.
    """
    file = Path(path)
    if path != "-" and not file.exists():
        raise InputError(f"--input: no file {path!r}")
    if file.is_dir():
        left_out = Counter[str]()
        try:
            found = sorted(image_files.find(file, left_out))
        except OSError as error:
            raise InputError(f"--input: {path} cannot be read: {error}") from error
        if left_out:
            _logger.warning("--input: %s", image_files.left_out_line(file, left_out))
        if not found:
            endings = ", ".join(image_files.SUFFIXES)
            raise InputError(
                f"--input: expected images ({endings}) in {path}, found none"
            )
        yield from found
    elif path.lower().endswith(image_files.SUFFIXES):
        yield file
    elif path.lower().endswith(".txt"):
        yield from _listed(file)
    elif path.lower().endswith(".npy"):
        array = npz_headers.load_array(file)
        if not array.ndim:
            raise InputError(f"--input: expected images in {path!r}, found one number")
        yield from array
    else:
        try:
            yield from _json_lines(path)
        except OSError as error:
            raise InputError(f"--input: {path} cannot be read: {error}") from error


def _listed(file: Path) -> Iterator[Path]:
    for line in filter(str.strip, lines.read(file, names=True)):
        yield file.parent / image_files.listed_path(file.parent, line)


def _json_lines(path: str) -> Iterator[Any]:
    with sys.stdin.buffer if path == "-" else open(path, "rb") as opened:
        for number, line in enumerate(opened):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:  # neither JSON nor UTF-8
                images = f"an image ({', '.join(image_files.SUFFIXES)}), .txt, .npy or "
                raise InputError(
                    f"--input: expected {images if path != '-' else ''}JSON in line "
                    f"{number + 1}, found {line[:40]!r}"
                ) from error
