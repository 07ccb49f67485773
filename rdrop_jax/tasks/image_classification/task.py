"""Image classification."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import flax.linen as nn
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
from rdrop_jax.tasks.classification import (
    make_example_scores,
    make_loss,
    mean_probabilities,
)
from rdrop_jax.tasks.field_checks import model_module, shared
from rdrop_jax.tasks.image_classification import (
    MODELS,
    image_sets,
    images,
    scores,
    subsets,
)
from rdrop_jax.tasks.image_classification.decode import Decoded
from rdrop_jax.tasks.image_classification.predict import make_predictor
from rdrop_jax.tasks.image_views import make_views
from rdrop_jax.tasks.pass_rates import pass_forwards
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import process
from rdrop_jax.training.mesh import replicated, shard_batch
from rdrop_jax.training.task import (
    Averaging,
    Evaluator,
    ExampleScores,
    Report,
    StepOptions,
    Task,
)

# Fields of ``data`` that averaged runs share.
_SHARED = (
    *("classes", "num_classes", "image_size", "channels"),
    *("mean", "std", "interpolation", "eval_crop"),
)
Split = Callable[[str], Decoded]
Sums = Callable[[Params, Batch], dict[str, jax.Array]]


def build(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    resuming: bool = True,
    averaged: Callable[[Forward], Forward] | None = None,
) -> Task:
    """Build the task of a config with ``task="image_classification"``.

    Args:
      config: config of the run.
      workdir: folder of the run, which records its splits; None uses no records.
      resuming: ignored; the task keeps no files.
      averaged: makes the forward of evaluation and prediction from the model's.
    """
    del resuming
    architecture = model_module(config, MODELS)
    module = architecture.make_model(config)
    size, channels = config.data.image_size, config.data.channels
    forward = make_forward(module)
    forward = forward if averaged is None else averaged(forward)

    def init(key: jax.Array) -> Params:
        blank = jnp.zeros((1, size, size, channels), jnp.float32)
        return module.init(key, blank, train=False)["params"]

    recorded = functools.cache(lambda: workdir_lib.recorded_data(workdir))
    found = functools.cache(
        lambda: image_sets.find(
            config.data, workdir_lib.recorded_commit(config, workdir)
        )
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
        pretrained=architecture.make_family(module, config.data),
        averaging=Averaging(
            mean_probabilities,
            lambda: shared(config, _SHARED),
            lambda: image_sets.drawn(found(), config.data),
        ),
        provenance=lambda: image_sets.provenance(found(), config.data),
        step=_step_options(config, architecture.make_model),
        report=Report(
            size=lambda name: f"{len(split(name)):,} rows",
            notes=lambda: (*found().notes, *image_sets.notes(found(), config.data)),
            signatures=left_out,
        ),
    )


def _step_options(
    config: ConfigDict, make_model: Callable[[ConfigDict], nn.Module]
) -> StepOptions:
    return StepOptions(
        forwards=pass_forwards(
            config, lambda changed: make_forward(make_model(changed))
        ),
        views=make_views(config),
        partition_rules=PARTITION_RULES,
    )


def make_forward(module: nn.Module) -> Forward:
    """Make ``(params, batch, key | None) -> logits``."""
    return linen_forward(
        module, "image", train={"train": True}, evaluate={"train": False}
    )


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
        labels = sources.labels_of(rows)
        kept = subsets.balanced_subset(labels, data.labelled, config.seed)
        known = None
        if data.unlabelled:
            known = len(kept)
            more = subsets.others(len(rows), kept, data.unlabelled, config.seed)
            kept = np.concatenate([kept, more])
        rows = sources.Subset(rows, kept, known)
    elif name == "train" and data.unlabelled:
        raise InputError(
            f"data.unlabelled: expected 0 for data.labelled=0, got {data.unlabelled}. "
            "Set data.labelled"
        )
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
