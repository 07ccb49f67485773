"""Evaluation of a translator on full splits, and sample outputs for the log."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.core.losses import softmax_cross_entropy
from rdrop_jax.core.metrics import perplexity
from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.data.tokenizers import Special
from rdrop_jax.models.outputs import nll as nll_of
from rdrop_jax.tasks.seq2seq import encoded, token_batches
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.sentences import Sentences
from rdrop_jax.tasks.seq2seq.translator import Answer, Seq2SeqSpec, Translate
from rdrop_jax.training.mesh import row_shards, shard_batch
from rdrop_jax.training.task import Evaluator, ExampleScores

_logger = logging.getLogger(__name__)
_SAMPLES = 10  # number of sample lines
_SAMPLE = 200  # maximum number of source characters in a sample line

Split = Callable[[str], Pairs]


@dataclass(frozen=True)
class TextMetrics:
    """Scores of answers against references.

    Attributes:
      names: names of the scores, with "loss" and "perplexity" of the model.
      compute: ``(answers, pairs) -> scores`` of a corpus.
      signatures: ``pairs -> description`` of the scores, for result.json.
      problem: ``pairs -> problem`` of the scores with the references; empty if there is
        none.
      compute_each: ``(answers, pairs) -> scores [examples]``; None if the scores are
        only defined for a corpus.
    """

    names: tuple[str, ...]
    compute: Callable[[list[Answer], Pairs], dict[str, float]]
    signatures: Callable[[Pairs], dict[str, str]]
    problem: Callable[[Pairs], str]
    compute_each: Callable[[list[Answer], Pairs], dict[str, np.ndarray]] | None = None


def make_evaluator(
    config: ConfigDict,
    forward: Forward,
    special: Special,
    metrics: TextMetrics,
    translate: Translate,
    split: Split,
    encode: Callable[[str], encoded.Encoded],
    name: str,
    mesh: Mesh,
) -> Evaluator:
    """Make an evaluator of per-token cross entropy and answer scores on a split."""
    texts, (source, target, _) = split(name), encode(name)
    tokens = int(target.lengths.sum())
    batches = _eval_batches(config, source, target, mesh)
    if jax.process_index() == 0 and (problem := metrics.problem(texts)):
        _logger.warning("warning: %s: %s", texts.origin, problem)

    @jax.jit
    def score(params: Params, batch: Batch) -> jax.Array:
        outputs, where = forward(params, batch, None), batch["where"]
        if isinstance(outputs, LinearOutput):
            return jnp.sum(jnp.where(where, nll_of(outputs, batch["labels"]), 0.0))
        return jnp.sum(softmax_cross_entropy(outputs, batch["labels"], where=where))

    def evaluate(params: Params) -> dict[str, float]:
        nll = 0.0
        for batch in batches:
            each = range(batch.shape.rows)
            rows = token_batches.collate(source, target, batch, each, special)
            nll += float(score(params, shard_batch(mesh, rows, full=True)))
        loss = nll / tokens
        if math.isnan(loss):
            return dict.fromkeys(metrics.names, math.nan) | {"examples": len(texts)}
        return {
            **metrics.compute(translate(params, texts.source), texts),
            "loss": loss,
            "perplexity": perplexity(loss),
            "examples": len(texts),
        }

    return evaluate


def _eval_batches(
    config: ConfigDict, source: Sentences, target: Sentences, mesh: Mesh
) -> list[token_batches.Batch]:
    lengths = token_batches.choose_lengths(
        source.lengths, target.lengths, config.data.buckets
    )
    # Evaluation does not accumulate: use as many tokens as a microbatch holds.
    limit = config.batch_tokens // config.accum_steps
    multiple = math.lcm(config.data.rows_multiple, row_shards(mesh))
    limit = max(limit, multiple * max(map(max, lengths)))
    shapes = token_batches.make_shapes(lengths, limit, multiple)
    buckets = token_batches.assign(source.lengths, target.lengths, shapes)
    return list(token_batches.cut(np.arange(len(buckets)), buckets, shapes))


def make_examples(
    metrics: TextMetrics, translate: Translate, split: Split, name: str, mesh: Mesh
) -> ExampleScores:
    """Make a function that scores each example of a split, with dropout off."""
    texts = split(name)

    def scores(params: Params, key: Key | None) -> dict[str, np.ndarray]:
        if key is not None:
            raise ValueError("answers are searched without dropout: expected no key")
        assert metrics.compute_each is not None
        return metrics.compute_each(translate(params, texts.source), texts)

    return scores


def make_samples(
    spec: Seq2SeqSpec, translate: Translate, split: Split
) -> Callable[[Params], list[str]]:
    """Make a function that translates a few validation texts for the log.

    Args:
      spec: specification of the task.
      translate: ``(params, texts) -> answers``.
      split: ``name -> pairs`` of a split.

    Returns:
      ``params -> lines``.
    """

    def samples(params: Params) -> list[str]:
        pairs = split("validation")
        rows = np.linspace(0, len(pairs) - 1, min(_SAMPLES, len(pairs))).astype(int)
        chosen = pairs.select(rows)
        answers = translate(params, chosen.source)
        return [
            f"{_start_of(source)} -> {spec.postprocess(answer.texts[0])} ({reference})"
            for source, answer, reference in zip(
                chosen.source, answers, chosen.target, strict=True
            )
        ]

    return samples


def _start_of(text: str) -> str:
    return text if len(text) <= _SAMPLE else text[: _SAMPLE - 3] + "..."
