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
from tokenizers import Tokenizer

from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.data import subwords
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.classification import check_outputs, make_example_scores
from rdrop_jax.tasks.text_classification import buckets, scores, text_files
from rdrop_jax.tasks.text_classification import words as words_lib
from rdrop_jax.tasks.text_classification.answers import (
    as_answer,
    as_row,
    is_blank,
    shown_input,
    span_answer,
)
from rdrop_jax.tasks.text_classification.bert import pad_id
from rdrop_jax.tasks.text_classification.texts import (
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
        return subwords.encode(
            self.tokenizer(),
            texts.first,
            texts.second,
            self.config.data.max_length,
            ends=texts.words is not None,
        )

    def labelled(self, texts: Texts) -> tuple[Texts, np.ndarray]:
        """Return the labelled texts, and their labels as an array."""
        data = self.config.data
        kept = np.flatnonzero([label is not None for label in texts.labels])
        texts = texts.take(kept)
        return texts, encode_labels(texts, data.labels, data.classes)[0]

    def batches(
        self, encoded: subwords.EncodedTexts, **more: np.ndarray
    ) -> Iterator[tuple[np.ndarray, HostBatch]]:
        """Yield row numbers and batches, with additional arrays per row."""
        c = self.config
        padding = pad_id(c.model)

        def make(rows: np.ndarray, time: int) -> HostBatch:
            return encoded.batch(rows, time, padding) | {
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
    """Make ``(params, encoded texts) -> outputs``, in the order of the texts.

    If words have labels, the rows are the tokens of all texts.
    """

    # Every process reads all outputs.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def run(params: Params, batch: Batch) -> jax.Array:
        return scorer.forward(params, batch, None).astype(jnp.float32)

    def outputs(params: Params, encoded: subwords.EncodedTexts) -> np.ndarray:
        each: dict[int, np.ndarray] = {}
        for rows, batch in scorer.batches(encoded):
            found = jax.device_get(run(params, shard_batch(mesh, batch, full=True)))
            each |= zip(rows.tolist(), found, strict=False)
        ordered = [each[row] for row in range(len(encoded))]
        if scorer.config.data.labels != "words":
            return np.stack(ordered)
        lengths = encoded.lengths
        return np.concatenate([x[:n] for x, n in zip(ordered, lengths, strict=True)])

    return outputs


def make_evaluator(scorer: Scorer, split: Split, name: str, mesh: Mesh) -> Evaluator:
    """Make an evaluator over all labelled rows of a split."""
    data = scorer.config.data
    rows = split(name)
    texts, labels = scorer.labelled(rows)
    if not len(texts):
        raise InputError(
            f"{text_files.origin(data, name)}: expected labelled rows, found "
            f"{len(rows)} rows without a label."
        )
    encoded = scorer.encode(texts)
    outputs = make_outputs(scorer, mesh)
    if texts.words is not None:
        first = encoded.first_tokens(texts.words)
        counts = [len(words) for words in texts.words]
        words_lib.report_cut(first, data.max_length, name, "scored as O")

    def evaluate(params: Params) -> dict[str, float]:
        found = outputs(params, encoded)
        if texts.words is None:
            return scores.SCORES[data.labels](found, labels)
        return scores.of_words(found[first], labels, first >= 0, counts, data.classes)

    return evaluate


def make_examples(scorer: Scorer, split: Split, name: str, mesh: Mesh) -> ExampleScores:
    """Make a function that scores the labelled rows of a split, in their order."""
    texts, labels = scorer.labelled(split(name))
    encoded = scorer.encode(texts)

    def batches() -> Iterator[HostBatch]:
        for rows, batch in scorer.batches(encoded, label=labels):
            where = np.arange(len(batch["label"])) < len(rows)
            yield batch | {"where": where}

    score = make_example_scores(scorer.forward, batches, mesh)
    order = np.argsort(buckets.eval_order(encoded.lengths))

    def scores(params: Params, key: Key | None) -> dict[str, np.ndarray]:
        return {name: x[order] for name, x in score(params, key).items()}

    return scores


def make_predictor(scorer: Scorer, split: Split, mesh: Mesh) -> Predictor:
    """Make a predictor for texts, text pairs, or dicts with the data's columns."""
    data = scorer.config.data
    named = text_files.columns(data)
    outputs = make_outputs(scorer, mesh)
    size = _AT_ONCE * scorer.config.eval.batch_size

    def rows(name: str) -> list[Any]:
        texts = split(name)
        if texts.words is not None:
            each = zip(texts.first, texts.words, strict=True)
            return [[text[a:b] for a, b in words] for text, words in each]
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
        found: Iterator[dict[str, Any]] = iter(())
        if kept:
            texts = collect(kept, named, labelled=False)
            encoded = scorer.encode(texts)
            values = outputs(params, encoded)
            check_outputs(values)
            found = answers(values, encoded, texts)
        for (number, _), row, empty in zip(chunk, rows, blank, strict=True):
            begin = {"row": number, "input": shown_input(row, named)}
            none: dict[str, Any] = {"spans": []} if named.words else {"label": None}
            nothing = none | {"notes": ["empty text: no label"]}
            yield begin | (nothing if empty else next(found))

    def answers(
        found: np.ndarray, encoded: subwords.EncodedTexts, texts: Texts
    ) -> Iterator[dict[str, Any]]:
        classes = tuple(data.classes)
        if texts.words is None:
            return (as_answer(row, data.labels, classes) for row in found)
        first = encoded.first_tokens(texts.words)
        ends = np.cumsum([len(words) for words in texts.words])[:-1]
        parts = zip(
            *(texts.first, texts.words, np.split(found[first], ends)),
            np.split(first >= 0, ends),
            strict=True,
        )
        return (span_answer(*part, classes) for part in parts)

    return Predictor(
        read=lambda name: text_files.inputs(name, data), rows=rows, run=run
    )
