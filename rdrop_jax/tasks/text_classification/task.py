"""Classification, multi-label classification or regression of texts or text pairs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.adapters import linen_forward
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.objective import rdrop_multilabel_loss, rdrop_regression_loss
from rdrop_jax.core.passes import Batch, Forward, Key, Params, View
from rdrop_jax.data import subwords, tokenizer_files
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.models.encoder import Classifier
from rdrop_jax.models.layers import PARTITION_RULES
from rdrop_jax.tasks import classification, cutoff
from rdrop_jax.tasks.field_checks import TEXT_VIEWS, model_module, shared
from rdrop_jax.tasks.pass_rates import pass_forwards
from rdrop_jax.tasks.text_classification import (
    MODELS,
    buckets,
    evaluation,
    text_sets,
    words,
)
from rdrop_jax.tasks.text_classification.bert import pad_id
from rdrop_jax.tasks.text_classification.scores import NAMES
from rdrop_jax.tasks.text_classification.texts import Texts, encode_labels
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.distributed import process, write_on_process_0
from rdrop_jax.training.task import Averaging, Report, StepOptions, Task

# Fields of ``data`` that averaged runs share.
_SHARED = ("labels", "classes", "columns.text_b", "max_length")
_MEANS: dict[str, Callable[[Array], Array]] = {
    "classes": classification.mean_probabilities,
    "multilabel": classification.mean_label_probabilities,
    "numbers": functools.partial(jnp.mean, axis=0),
    "words": classification.mean_probabilities,
}


def build(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    resuming: bool = True,
    averaged: Callable[[Forward], Forward] | None = None,
) -> Task:
    """Build the task of a config with ``task="text_classification"``.

    Args:
      config: config of the run; class names that it lacks are read from the data.
      workdir: folder of the run, with its tokenizer; None makes a tokenizer.
      resuming: False writes the tokenizer.
      averaged: makes the forward of evaluation and prediction from the model's.
    """
    commit = workdir_lib.recorded_commit(config, workdir)
    config = text_sets.completed(config, commit)
    data = config.data
    architecture = model_module(config, MODELS)
    module = architecture.make_model(config)
    forward = make_forward(module)
    forward = forward if averaged is None else averaged(forward)
    recorded = functools.cache(lambda: workdir_lib.recorded_data(workdir))
    found = functools.cache(lambda: text_sets.find(data, commit))
    split = functools.cache(
        lambda name: text_sets.open_split(found(), data, name, recorded())
    )
    kept = None if workdir is None else workdir / tokenizer_files.NAME

    def make() -> Tokenizer:
        return with_fitting_ids(config, make_tokenizer(config, split))

    if kept is not None and not resuming:
        write_on_process_0(lambda: subwords.save(make(), kept))

    @functools.cache
    def tokenizer() -> Tokenizer:
        if kept is not None and kept.is_file():
            return with_fitting_ids(config, tokenizer_files.load(kept))
        return make()

    @functools.cache
    def train_data() -> buckets.BucketBatches:
        return make_train_data(config, tokenizer(), split("train"))

    def kept_files() -> dict[str, str]:
        if kept is None or not kept.is_file():
            return {}
        return {tokenizer_files.NAME: checksums.sha256(kept)}

    scorer = evaluation.Scorer(config, forward, tokenizer)
    names = text_sets.split_names(data)
    return Task(
        init=functools.partial(init, module),
        forward=forward,
        loss=make_loss(config),
        train_data=train_data,
        scores=NAMES[data.labels],
        evaluators={
            name: functools.partial(evaluation.make_evaluator, scorer, split, name)
            for name in names
        },
        examples={
            name: functools.partial(evaluation.make_examples, scorer, split, name)
            for name in (names if data.labels == "classes" else ())
        },
        predictor=functools.partial(evaluation.make_predictor, scorer, split),
        pretrained=architecture.make_family(module, data, tokenizer),
        averaging=_averaging(config, kept_files),
        provenance=lambda: text_sets.provenance(found(), data) | kept_files(),
        step=_step_options(config, architecture.make_model),
        report=Report(
            size=lambda name: f"{len(split(name)):,} rows",
            notes=lambda: text_sets.notes(found(), data),
            signatures=lambda: {"padding": f"{train_data().padding(256):.3f}"},
        ),
    )


def _averaging(
    config: ConfigDict, kept_files: Callable[[], dict[str, str]]
) -> Averaging:
    return Averaging(
        _MEANS[config.data.labels],
        lambda: shared(config, _SHARED) | kept_files(),
        lambda: text_sets.drawn(config.data),
    )


def _step_options(
    config: ConfigDict, make_model: Callable[[ConfigDict], Classifier]
) -> StepOptions:
    return StepOptions(
        forwards=pass_forwards(
            config, lambda changed: make_forward(make_model(changed))
        ),
        views=make_views(config, make_model(config).encoder.size.width),
        partition_rules=PARTITION_RULES,
    )


def make_forward(module: Classifier) -> Forward:
    """Make ``(params, batch, key | None) -> outputs``."""
    return linen_forward(
        module, encoder_inputs, train={"train": True}, evaluate={"train": False}
    )


def encoder_inputs(batch: Batch) -> tuple[Array, Array, Array, Array | None]:
    """Return tokens, types, mask and kept embeddings of `subwords.EncodedTexts`."""
    at = jnp.arange(batch["tokens"].shape[1])[None]
    where = at < batch["length"][:, None]
    return batch["tokens"], batch["types"], where, batch.get("keep")


def make_views(config: ConfigDict, width: int) -> View | None:
    """Make the view of ``rdrop.views``; [CLS], the first token, is never cut."""
    cut = cutoff.make_cut(config, TEXT_VIEWS, width)
    if cut is None:
        return None

    def view(batch: Batch, key: Key) -> Batch:
        _, _, where, _ = encoder_inputs(batch)
        return batch | {"keep": cut(key, where.at[:, 0].set(False))}

    return view


def init(module: Classifier, key: jax.Array) -> Params:
    """Initialize parameters."""
    blank = jnp.zeros((1, 8), jnp.int32)
    return module.init(key, blank, blank, blank == 0, train=False)["params"]


def make_loss(config: ConfigDict) -> Loss:
    """Make the R-Drop loss; unlabelled rows only enter the consistency term."""
    labels = config.data.labels
    if labels in ("classes", "words"):
        return classification.make_loss(config)

    def loss(
        outputs: Array, batch: Batch, **objective: Any
    ) -> tuple[Array, dict[str, Mean]]:
        objective["label_weight"] = batch["labelled"]
        if labels == "numbers":
            return rdrop_regression_loss(outputs[..., 0], batch["label"], **objective)
        return rdrop_multilabel_loss(outputs, batch["label"], **objective)

    return loss


def make_tokenizer(config: ConfigDict, split: Callable[[str], Texts]) -> Tokenizer:
    """Load or train the tokenizer of a new run.

    In order of precedence: ``data.tokenizer``; the tokenizer next to the weights of
    ``init_from``; WordPiece trained on the training texts, of all folds.

    Raises:
      InputError: the tokenizer is missing.
    """
    if config.data.tokenizer:
        return tokenizer_files.load(Path(config.data.tokenizer))
    if config.init_from:
        beside = Path(config.init_from)
        if not beside.is_dir():
            beside, _ = workdir_lib.split_checkpoint(config.init_from)
        return tokenizer_files.load(beside if beside.is_dir() else beside.parent)
    names = ("train", "validation") if config.data.folds else ("train",)
    parts = [split(name) for name in names]
    texts = [text for x in parts for text in (*x.first, *(x.second or ()))]
    if config.data.folds:  # the same tokenizer for all folds
        texts.sort()
    return subwords.train_wordpiece(texts, config.model.vocab_size)


def with_fitting_ids(config: ConfigDict, tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer after checking that it fits the model."""
    subwords.check_fits(
        tokenizer,
        vocab_size=config.model.vocab_size,
        pad_id=pad_id(config.model),
        exact=bool(config.init_from),
    )
    return tokenizer


def make_train_data(
    config: ConfigDict, tokenizer: Tokenizer, texts: Texts
) -> buckets.BucketBatches:
    """Make shuffled training batches, bucketed by length."""
    data = config.data
    labels, there = encode_labels(texts, data.labels, data.classes)
    if not there.any():
        raise InputError("data.columns.label: expected labelled rows, found none")
    encoded = subwords.encode(
        tokenizer,
        texts.first,
        texts.second,
        data.max_length,
        ends=texts.words is not None,
    )
    padding = pad_id(config.model)
    per_token: dict[str, np.ndarray] = {}
    per_row = {"label": labels, "labelled": there}
    if texts.words is not None:
        first = encoded.first_tokens(texts.words)
        words.report_cut(first, data.max_length, "train", "not trained on")
        per_token = _scored_tokens(encoded, first, labels, there)
        per_row = {}

    def make(rows: np.ndarray, time: int) -> dict[str, np.ndarray]:
        known = {name: x[rows] for name, x in per_row.items()}
        return encoded.batch(rows, time, padding, **per_token) | known

    return buckets.BucketBatches(
        encoded.lengths,
        make,
        batch_size=config.batch_size,
        shapes=buckets.choose_shapes(encoded.lengths, data.buckets),
        seed=config.seed,
        process=process(),
    )


def _scored_tokens(
    encoded: subwords.EncodedTexts,
    first: np.ndarray,
    labels: np.ndarray,
    there: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return labels and masks of all tokens from those of words and rows."""
    where = np.zeros(len(encoded.ids), bool)
    label = np.zeros(len(encoded.ids), np.int32)
    where[first[first >= 0]] = True
    label[first[first >= 0]] = labels[first >= 0]
    labelled = where * np.repeat(there, encoded.lengths)
    return {"label": label, "where": where, "labelled": labelled}
