"""Image classification."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.data import sources
from rdrop_jax.data.batches import HostBatch, Row, TrainBatches, eval_batches
from rdrop_jax.data.datasets import Dataset
from rdrop_jax.data.sources import ImageRows
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.models.layers import PARTITION_RULES
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import SIZES, ViT
from rdrop_jax.pretrained.initialize import Family
from rdrop_jax.tasks.classification import make_example_scores, make_loss
from rdrop_jax.tasks.fields import check_choices, check_heads, check_least, resized
from rdrop_jax.tasks.image_classification import image_sets, images, scores, subsets
from rdrop_jax.tasks.image_classification import weights as vit_files
from rdrop_jax.tasks.image_classification.decode import Decoded
from rdrop_jax.tasks.image_classification.predict import make_predictor
from rdrop_jax.tasks.pass_rates import pass_forwards
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import process
from rdrop_jax.training.mesh import replicated, shard_batch
from rdrop_jax.training.task import (
    Evaluator,
    ExampleScores,
    Report,
    StepOptions,
    Task,
)

Split = Callable[[str], Decoded]
Sums = Callable[[Params, Batch], dict[str, jax.Array]]


def build(
    config: ConfigDict, workdir: Path | None = None, *, resuming: bool = True
) -> Task:
    """Build the task of a config with ``task="image_classification"``.

    Args:
      config: config of the run.
      workdir: folder of the run, which records its splits; None uses no records.
      resuming: ignored; the task keeps no files.
    """
    del resuming
    module = make_model(config)
    size, channels = config.data.image_size, config.data.channels
    forward = make_forward(module)

    def init(key: jax.Array) -> Params:
        blank = jnp.zeros((1, size, size, channels), jnp.float32)
        return module.init(key, blank, train=False)["params"]

    recorded = functools.cache(lambda: workdir_lib.recorded_data(workdir))
    found = functools.cache(
        lambda: image_sets.find(config.data, recorded().get(config.data.name, ""))
    )
    opened: dict[str, Decoded] = {}

    def split(name: str) -> Decoded:
        if name not in opened:
            opened[name] = load_split(found(), config, name, recorded())
        return opened[name]

    sums_on = functools.cache(functools.partial(make_sums, forward))

    def left_out() -> dict[str, str]:
        return {
            f"{name}: images left out": str(len(rows.skipped))
            for name, rows in opened.items()
            if rows.skipped
        }

    return Task(
        init=init,
        forward=forward,
        loss=make_loss(config),
        train_data=functools.cache(lambda: make_train_data(config, split("train"))),
        scores=scores.NAMES,
        evaluators={
            name: functools.partial(make_evaluator, config, sums_on, split, name)
            for name in SPLITS
        },
        examples={
            name: functools.partial(_make_examples, config, forward, split, name)
            for name in SPLITS
        },
        predictor=lambda mesh: make_predictor(config, forward, split, mesh),
        pretrained=make_family(module, config.data),
        provenance=lambda: found().provenance(),
        step=StepOptions(
            forwards=pass_forwards(
                config, lambda changed: make_forward(make_model(changed))
            ),
            partition_rules=PARTITION_RULES,
        ),
        report=Report(
            size=lambda name: f"{len(split(name)):,} rows",
            notes=lambda: (*found().notes, *image_sets.notes(found(), config.data)),
            signatures=left_out,
        ),
    )


def make_forward(module: ViT) -> Forward:
    """Make ``(params, batch, key | None) -> logits``."""
    return linen_forward(
        module, "image", train={"train": True}, evaluate={"train": False}
    )


def make_model(config: ConfigDict) -> ViT:
    """Build the module described by ``config.model``."""
    m = config.model
    if m.name != "vit":
        raise InputError(f"model.name: expected vit, found {m.name!r}")
    check_choices({"model.size": (m.size, tuple(SIZES))})
    counts = {f"model.{k}": m[k] for k in (*Size._fields, "patch_size")}
    counts |= {f"data.{k}": config.data[k] for k in ("image_size", "num_classes")}
    check_least({field: (value, 1) for field, value in counts.items()})
    size = resized(m, SIZES[m.size])
    check_heads(size)
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
    """Make the import and export functions for weights of the model."""
    images = vit_files.Preprocessing(
        size=data.image_size,
        channels=data.channels,
        mean=np.broadcast_to(data.mean, data.channels).tolist(),
        std=np.broadcast_to(data.std, data.channels).tolist(),
        labels=tuple(data.classes),
    )
    return vit_files.family(module, images)


def load_split(
    found: Dataset[ImageRows],
    config: ConfigDict,
    name: str,
    recorded: Mapping[str, str] | None = None,
) -> Decoded:
    """Load a split of a dataset and check its labels against the model."""
    data = config.data
    rows = image_sets.open_split(found, data, name, recorded)
    if rows.labels is not None:
        title = f"{data.name}, {name}"
        sources.check_labels(rows.labels, data.num_classes, title, rows.name)
    if name == "train" and data.labelled:
        labels = rows.labels
        if labels is None:
            labels = np.array([rows[i]["label"] for i in range(len(rows))])
        kept = subsets.balanced_subset(labels, data.labelled, config.seed)
        known = None
        if data.unlabelled:
            known = len(kept)
            more = subsets.others(len(rows), kept, data.unlabelled, config.seed)
            kept = np.concatenate([kept, more])
        rows = sources.Subset(rows, kept, known)
    elif name == "train" and data.unlabelled:
        raise InputError("data.unlabelled: expected 0 where data.labelled is 0")
    return Decoded(
        rows,
        channels=data.channels,
        num_classes=data.num_classes,
        skip_bad=data.skip_bad,
    )


def make_train_data(config: ConfigDict, rows: Decoded) -> TrainBatches:
    """Make shuffled, augmented batches of the training split."""
    augmented = images.make_train_transform(config.data)

    def transform(row: Row, rng: np.random.Generator) -> Row:
        known = {k: row[k] for k in ("label", "labelled") if k in row}
        return {"image": augmented(row["image"], rng)} | known

    return TrainBatches(
        rows,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        process=process(),
        workers=config.data.workers,
    )


def _eval_batches(
    config: ConfigDict, rows: Decoded, process: tuple[int, int]
) -> Iterator[HostBatch]:
    resized = images.make_eval_transform(config.data)
    return eval_batches(
        rows,
        lambda row: row | {"image": resized(row["image"])},
        batch_size=config.eval.batch_size,
        process=process,
        workers=config.data.workers,
        ahead=config.data.prefetch,
    )


def make_sums(forward: Forward, mesh: Mesh) -> Sums:
    """Make the jitted part of evaluation, shared by all splits."""

    # Every process reads all sums.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def sums(params: Params, batch: Batch) -> dict[str, jax.Array]:
        logits = forward(params, batch, None)
        return scores.sums(logits, batch["label"], batch["where"])

    return sums


def make_evaluator(
    config: ConfigDict,
    sums_on: Callable[[Mesh], Sums],
    split: Split,
    name: str,
    mesh: Mesh,
) -> Evaluator:
    """Make an evaluator of the scores of a split."""
    rows, sums = split(name), sums_on(mesh)

    def evaluate(params: Params) -> dict[str, float]:
        batches = _eval_batches(config, rows, process())
        return scores.scores(
            jax.device_get(sums(params, shard_batch(mesh, batch))) for batch in batches
        )

    return evaluate


def _make_examples(
    config: ConfigDict, forward: Forward, split: Split, name: str, mesh: Mesh
) -> ExampleScores:
    def batches() -> Iterator[HostBatch]:
        return _eval_batches(config, split(name), (0, 1))

    return make_example_scores(forward, batches, mesh)
