"""Evaluation and prediction of text classification, in one pass over the rows."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict
from scipy.special import expit, softmax
from tokenizers import Tokenizer

from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.data import subwords, tables
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files.lines import clean
from rdrop_jax.models.encoder import PAD_ID
from rdrop_jax.tasks.classification import class_answer, make_example_scores
from rdrop_jax.tasks.text_classification import buckets, scores, text_files
from rdrop_jax.tasks.text_classification.texts import (
    Columns,
    Texts,
    collect,
    encode_labels,
)
from rdrop_jax.training.mesh import replicated, shard_batch
from rdrop_jax.training.task import Evaluator, ExampleScores, Predictor

Split = Callable[[str], Texts]
# Number of batches that are predicted together, so that rows can be sorted by length.
_AT_ONCE = 16


@dataclass(frozen=True)
class Scorer:
    """State shared by evaluation and prediction.

    Attributes:
      config: config of the run.
      forward: forward function of the model.
      tokenizer: function that loads the tokenizer of the run.
    """

    config: ConfigDict
    forward: Forward
    tokenizer: Callable[[], Tokenizer]

    def encode(self, texts: Texts) -> subwords.EncodedTexts:
        """Convert texts to token ids."""
        length = self.config.data.max_length
        return subwords.encode(self.tokenizer(), texts.first, texts.second, length)

    def encode_labelled(self, texts: Texts) -> tuple[subwords.EncodedTexts, np.ndarray]:
        """Convert the labelled texts to token ids, and their labels to arrays."""
        data = self.config.data
        labels, there = encode_labels(texts, data.labels, data.classes)
        kept = np.flatnonzero(there)
        return self.encode(texts.take(kept)), labels[kept]

    def batches(
        self, encoded: subwords.EncodedTexts, **more: np.ndarray
    ) -> Iterator[tuple[np.ndarray, HostBatch]]:
        """Yield row numbers and batches, with additional arrays per row."""
        c = self.config
        pad_id = PAD_ID[c.model.name]

        def make(rows: np.ndarray, time: int) -> HostBatch:
            return encoded.batch(rows, time, pad_id) | {
                name: x[rows] for name, x in more.items()
            }

        return buckets.eval_batches(
            encoded.lengths,
            make,
            batch_size=c.eval.batch_size,
            shapes=buckets.make_shapes(c.data.max_length, c.data.buckets),
        )


def make_outputs(
    scorer: Scorer, mesh: Mesh
) -> Callable[[Params, subwords.EncodedTexts], Float[np.ndarray, "rows outputs"]]:
    """Make ``(params, encoded texts) -> outputs``, in the order of the texts."""

    # Every process reads all outputs.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def run(params: Params, batch: Batch) -> jax.Array:
        return scorer.forward(params, batch, None).astype(jnp.float32)

    def outputs(params: Params, encoded: subwords.EncodedTexts) -> np.ndarray:
        parts, order = [], []
        for rows, batch in scorer.batches(encoded):
            found = jax.device_get(run(params, shard_batch(mesh, batch, full=True)))
            parts.append(found[: len(rows)])
            order.append(rows)
        whole = np.concatenate(parts)
        result = np.empty_like(whole)
        result[np.concatenate(order)] = whole
        return result

    return outputs


def make_evaluator(scorer: Scorer, split: Split, name: str, mesh: Mesh) -> Evaluator:
    """Make an evaluator over all labelled rows of a split."""
    data = scorer.config.data
    encoded, labels = scorer.encode_labelled(split(name))
    if not len(labels):
        raise InputError(f"{data.name}, {name}: expected labelled rows, found none")
    outputs = make_outputs(scorer, mesh)

    def evaluate(params: Params) -> dict[str, float]:
        return scores.SCORES[data.labels](outputs(params, encoded), labels)

    return evaluate


def make_examples(scorer: Scorer, split: Split, name: str, mesh: Mesh) -> ExampleScores:
    """Make a function that scores each labelled row of a split with classes."""
    encoded, labels = scorer.encode_labelled(split(name))

    def batches() -> Iterator[HostBatch]:
        for rows, batch in scorer.batches(encoded, label=labels):
            where = np.arange(len(batch["label"])) < len(rows)
            yield batch | {"where": where}

    return make_example_scores(scorer.forward, batches, mesh)


def make_predictor(scorer: Scorer, split: Split, mesh: Mesh) -> Predictor:
    """Make a predictor for texts, text pairs, or dicts with the data's columns."""
    data = scorer.config.data
    named = text_files.columns(data)
    outputs = make_outputs(scorer, mesh)
    size = _AT_ONCE * scorer.config.eval.batch_size

    def rows(name: str) -> list[Any]:
        texts = split(name)
        if texts.second is None:
            return list(texts.first)
        return list(zip(texts.first, texts.second, strict=True))

    def run(params: Params, inputs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        numbered = enumerate(inputs)
        while chunk := list(itertools.islice(numbered, size)):
            yield from answer(params, chunk)

    def answer(
        params: Params, chunk: list[tuple[int, Any]]
    ) -> Iterator[dict[str, Any]]:
        rows = [as_row(x, named, f"--input: text {i + 1}") for i, x in chunk]
        blank = [is_blank(row, named) for row in rows]
        kept = [row for row, empty in zip(rows, blank, strict=True) if not empty]
        found: Iterator[np.ndarray] = iter(())
        if kept:
            texts = collect(kept, named, labelled=False)
            found = iter(outputs(params, scorer.encode(texts)))
        for (number, _), row, empty in zip(chunk, rows, blank, strict=True):
            begin = {"row": number, "input": shown_input(row, named)}
            yield begin | (
                {"label": None, "notes": ["empty text: no label"]}
                if empty
                else as_answer(next(found), data.labels, tuple(data.classes))
            )

    return Predictor(
        read=lambda name: tables.inputs(name, data.quoting), rows=rows, run=run
    )


def as_row(item: Any, named: Columns, place: str) -> Row:
    """Convert a text, a pair or a dict to a row with the columns of the data.

    Raises:
      InputError: the number of texts is wrong, or the item has another type.
    """
    if isinstance(item, Row):
        return item
    if isinstance(item, dict):
        return Row(place, item)
    if not isinstance(item, str | list | tuple):
        raise InputError(f"{place}: expected a text, found {item!r}")
    parts = [item] if isinstance(item, str) else list(item)
    names = [name for name in (named.text, named.text_b) if name]
    if isinstance(item, str) and not item.strip():  # a blank line, also for text pairs
        parts = [item] * len(names)
    if len(parts) != len(names):
        raise InputError(
            f"{place}: expected {len(names)} text{'s' * (len(names) > 1)}, "
            f"{', '.join(names)}, found {len(parts)}"
        )
    return Row(place, dict(zip(names, parts, strict=True)))


def is_blank(row: Row, named: Columns) -> bool:
    """Return True if a text of the row is empty or only white space."""
    texts = [row.get(name) for name in (named.text, named.text_b) if name]
    return any(isinstance(text, str) and not text.strip() for text in texts)


def shown_input(row: Row, named: Columns) -> str | list[str]:
    """Return the text of a row, or its two texts, for display in answers."""
    texts = [row.get(name, "") for name in (named.text, named.text_b) if name]
    shown = [clean(str(text)) for text in texts]
    return shown if len(shown) > 1 else shown[0]


def as_answer(
    outputs: Float[np.ndarray, " outputs"], labels: str, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Convert the outputs of one text to a JSON-ready dict."""
    if labels == "numbers":
        return {"label": round(float(outputs[0]), 6)}
    chances = expit(outputs) if labels == "multilabel" else softmax(outputs)
    each = {name: round(float(p), 6) for name, p in zip(classes, chances, strict=True)}
    if labels == "multilabel":
        chosen = [name for name, z in zip(classes, outputs, strict=True) if z > 0]
        return {"label": chosen, "probabilities": each}
    return class_answer(np.asarray(chances), classes)
