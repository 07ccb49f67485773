"""Image classification."""

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.losses import softmax_cross_entropy
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.core.rdrop import rdrop_loss
from rdrop_jax.data import images, sources
from rdrop_jax.data.batches import (
    HostBatch,
    Row,
    TrainBatches,
    eval_batches,
    pad,
    stack,
)
from rdrop_jax.data.subsets import balanced_subset
from rdrop_jax.errors import InputError
from rdrop_jax.models.layers import PARTITION_RULES
from rdrop_jax.models.vit import SIZES, Size, ViT
from rdrop_jax.pretrained import vit as vit_files
from rdrop_jax.pretrained.merge import Family
from rdrop_jax.runtime.mesh import put
from rdrop_jax.tasks.base import Evaluator, ExampleScores, Predictor, Task
from rdrop_jax.tasks.examples import make_example_scores

Split = Callable[[str], sources.Images]


def build(config: ConfigDict) -> Task:
    """The task of a config whose ``task`` is image_classification."""
    module = make_model(config)
    size, channels = config.data.image_size, config.data.channels
    forward = linen_forward(
        module, "image", train={"train": True}, evaluate={"train": False}
    )

    def init(key: jax.Array) -> Params:
        blank = jnp.zeros((1, size, size, channels), jnp.float32)
        return module.init(key, blank, train=False)["params"]

    def loss(
        logits: jax.Array, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        return rdrop_loss(
            logits,
            batch["label"],
            **objective,
            label_smoothing=config.rdrop.label_smoothing,
            smoothing=config.rdrop.smoothing,
            divergence=config.rdrop.divergence,
            stop_gradient=config.rdrop.stop_gradient,
        )

    @functools.cache
    def split(name: str) -> sources.Images:
        rows = load_split(config.data, name)
        if name != "train" or config.data.labelled == 0:
            return rows
        kept = balanced_subset(rows.labels, config.data.labelled, config.seed)
        return sources.Images(rows.images[kept], rows.labels[kept])

    return Task(
        init=init,
        forward=forward,
        loss=loss,
        train_data=functools.cache(lambda: make_train_data(config, split("train"))),
        scores=("accuracy", "loss"),
        evaluators={
            name: functools.partial(make_evaluator, config, forward, split, name)
            for name in sources.SPLITS
        },
        examples={
            name: functools.partial(_make_examples, config, forward, split, name)
            for name in sources.SPLITS
        },
        predictor=lambda mesh: make_predictor(config, forward, split, mesh),
        partition_rules=PARTITION_RULES,
        pretrained=make_family(module, config.data),
        provenance=lambda: {"digits.csv.gz": sources.digits_sha256()},
    )


def make_model(config: ConfigDict) -> ViT:
    """The module that ``config.model`` describes."""
    m = config.model
    if m.name != "vit":
        raise InputError(f"model.name: expected vit, found {m.name!r}")
    if m.variant not in SIZES:
        raise InputError(
            f"model.variant: expected one of {', '.join(SIZES)}, found {m.variant!r}"
        )
    counts = {f"model.{k}": m[k] for k in (*Size._fields, "patch_size")}
    counts |= {f"data.{k}": config.data[k] for k in ("image_size", "num_classes")}
    for field, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"{field}: expected at least 1, found {value}")
    if config.data.shift < 0 or config.data.std <= 0:
        raise InputError(
            "data.shift, data.std: expected at least 0 and above 0, found "
            f"{config.data.shift} and {config.data.std}"
        )
    chosen = {k: m[k] for k in Size._fields if m[k] is not None}
    size = SIZES[m.variant]._replace(**chosen)
    if size.width % size.heads:
        raise InputError(
            f"model.heads: expected a divisor of width {size.width}, found {size.heads}"
        )
    if config.data.image_size % m.patch_size:
        raise InputError(
            "model.patch_size: expected a divisor of data.image_size "
            f"{config.data.image_size}, found {m.patch_size}"
        )
    return ViT(
        size=size,
        num_classes=config.data.num_classes,
        patch_size=m.patch_size,
        dropout=m.dropout,
        attention_dropout=m.attention_dropout,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
        masks=m.masks,
        norm_eps=m.norm_eps,
    )


def make_family(module: ViT, data: ConfigDict) -> Family:
    """How the model's weights come from files and go to files."""
    images = vit_files.Images(
        size=data.image_size,
        channels=data.channels,
        mean=np.broadcast_to(data.mean, data.channels).tolist(),
        std=np.broadcast_to(data.std, data.channels).tolist(),
    )
    return vit_files.family(module, images)


def load_split(data: ConfigDict, name: str) -> sources.Images:
    """One split of the named dataset, checked against the model's shapes."""
    if data.name != "digits":
        raise InputError(f"data.name: expected digits, found {data.name!r}")
    rows = sources.digits(name, data.split_seed)
    sources.check_labels(rows.labels, data.num_classes, f"{data.name}, {name}")
    wanted = (data.image_size, data.image_size, data.channels)
    if rows.images.shape[1:] != wanted:
        raise InputError(
            "data.image_size, data.channels: expected the images' "
            f"{rows.images.shape[1:]}, found {wanted}"
        )
    return rows


def _plain(data: ConfigDict) -> Callable[[Row], Row]:
    def transform(row: Row) -> Row:
        image = images.normalize(row["image"], data.mean, data.std)
        return {"image": image, "label": np.int32(row["label"])}

    return transform


def make_train_data(config: ConfigDict, rows: sources.Images) -> TrainBatches:
    """Shuffled, augmented batches of the training split."""
    plain = _plain(config.data)

    def transform(row: Row, rng: np.random.Generator) -> Row:
        moved = images.random_shift(row["image"], config.data.shift, rng)
        return plain(row | {"image": moved})

    return TrainBatches(
        rows,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        process=(jax.process_index(), jax.process_count()),
    )


def make_evaluator(
    config: ConfigDict, forward: Forward, split: Split, name: str, mesh: Mesh
) -> Evaluator:
    """Accuracy and cross entropy over a whole split, every image once."""
    rows = split(name)

    @jax.jit
    def score(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = forward(params, batch, None)
        hit = (jnp.argmax(logits, axis=-1) == batch["label"]) & batch["where"]
        nll = softmax_cross_entropy(logits, batch["label"], where=batch["where"])
        return jnp.sum(hit), jnp.sum(nll)

    def evaluate(params: Params) -> dict[str, float]:
        hits, nll = 0, 0.0
        batches = eval_batches(
            rows, _plain(config.data), batch_size=config.eval.batch_size
        )
        for batch in batches:
            hit, loss = jax.device_get(score(params, put(mesh, batch, whole=True)))
            hits, nll = hits + int(hit), nll + float(loss)
        return {
            "accuracy": hits / len(rows),
            "loss": nll / len(rows),
            "examples": len(rows),
        }

    return evaluate


def _make_examples(
    config: ConfigDict, forward: Forward, split: Split, name: str, mesh: Mesh
) -> ExampleScores:
    def batches() -> Iterator[HostBatch]:
        transform, size = _plain(config.data), config.eval.batch_size
        return eval_batches(split(name), transform, batch_size=size)

    return make_example_scores(forward, batches, mesh)


def make_predictor(
    config: ConfigDict, forward: Forward, split: Split, mesh: Mesh
) -> Predictor:
    """Labels with probabilities for images."""
    data = config.data
    shape = (data.image_size, data.image_size, data.channels)

    @jax.jit
    def probabilities(params: Params, batch: Batch) -> jax.Array:
        logits = forward(params, batch, None).astype(jnp.float32)
        return jax.nn.softmax(logits, axis=-1)

    def prepared(number: int, image: Any) -> Row:
        try:
            pixels = np.asarray(image)
        except ValueError as error:
            raise InputError(
                f"--input: expected rows of one length in image {number}, found others"
            ) from error
        if pixels.shape == shape[:2] and data.channels == 1:
            pixels = pixels[..., None]
        if pixels.shape != shape or not np.issubdtype(pixels.dtype, np.number):
            raise InputError(
                f"--input: expected images {shape} of numbers from 0 to 255, found "
                f"{pixels.dtype} {pixels.shape} in image {number}"
            )
        return {"image": images.normalize(pixels, data.mean, data.std)}

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        numbered = iter(enumerate(inputs))
        while chunk := list(itertools.islice(numbered, config.eval.batch_size)):
            batch = stack([prepared(number, image) for number, image in chunk])
            padded = pad(batch, config.eval.batch_size)
            found = jax.device_get(probabilities(params, put(mesh, padded, whole=True)))
            for p in found[: len(chunk)]:
                label = int(np.argmax(p))
                yield {
                    "label": label,
                    "probability": round(float(p[label]), 6),
                    "probabilities": [round(float(x), 6) for x in p],
                }

    return Predictor(
        read=read_images, rows=lambda name: list(split(name).images), run=run
    )


def read_images(path: str) -> Iterator[Any]:
    """Images from a .npy array, or JSON lines with one nested list each.

    Args:
      path: file name, or "-" for JSON lines on standard input.

    Yields:
      Arrays or nested lists, pixels from 0 to 255.

    Raises:
      InputError: no such file, or a line that is not JSON.
    """
    if path != "-" and not Path(path).is_file():
        raise InputError(f"--input: no file {path!r}")
    if path.endswith(".npy"):
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"--input: expected an array in {path!r}") from error
        yield from array
        return
    with sys.stdin.buffer if path == "-" else open(path, "rb") as lines:
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except ValueError as error:  # neither JSON nor UTF-8
                raise InputError(
                    f"--input: expected JSON in line {number + 1}, found {line[:40]!r}"
                ) from error
