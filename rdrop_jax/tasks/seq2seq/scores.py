"""Evaluation of a translator on full splits, and sample outputs for the log."""

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.core.losses import softmax_cross_entropy
from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.models.outputs import nll as nll_of
from rdrop_jax.tasks.seq2seq import encoded, token_batches
from rdrop_jax.tasks.seq2seq.parallel import Pairs
from rdrop_jax.tasks.seq2seq.sides import Side
from rdrop_jax.tasks.seq2seq.translator import Translator
from rdrop_jax.training.mesh import shard_batch
from rdrop_jax.training.task import Evaluator, ExampleScores

_logger = logging.getLogger(__name__)

Split = Callable[[str], Pairs]


def make_evaluator(
    config: ConfigDict,
    forward: Forward,
    translator: Translator,
    split: Split,
    encode: Callable[[str], encoded.Encoded],
    name: str,
    mesh: Mesh,
) -> Evaluator:
    """Make an evaluator of per-token cross entropy and answer scores on a split."""
    texts, (source, target, _) = split(name), encode(name)
    tokens = int(target.lengths.sum())
    batches = _eval_batches(config, source, target)
    special = translator.vocabularies.target.special
    if jax.process_index() == 0 and (problem := translator.misfit(texts)):
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
        answers = translator.translate(params, texts.source)
        loss = nll / tokens
        return {
            **translator.score(answers, texts),
            "loss": loss,
            "perplexity": float(np.exp(min(loss, 700.0))),
            "examples": len(texts),
        }

    return evaluate


def _eval_batches(
    config: ConfigDict, source: Side, target: Side
) -> list[token_batches.Batch]:
    lengths = token_batches.choose_lengths(
        source.lengths, target.lengths, config.data.buckets
    )
    # Evaluation does not accumulate: use as many tokens as a microbatch holds.
    room = config.batch_tokens // config.accum_steps
    multiple = config.data.rows_multiple
    room = max(room, multiple * max(map(max, lengths)))
    shapes = token_batches.make_shapes(lengths, room, multiple)
    buckets = token_batches.assign(source.lengths, target.lengths, shapes)
    return list(token_batches.cut(np.arange(len(buckets)), buckets, shapes))


def make_examples(
    translator: Translator,
    split: Split,
    names: tuple[str, ...],
    name: str,
    mesh: Mesh,
) -> ExampleScores:
    """Make a function that scores each example of a split, with dropout off."""
    texts = split(name)

    def scores(params: Params, key: Key | None) -> dict[str, np.ndarray]:
        if key is not None:
            raise ValueError("answers are searched without dropout: expected no key")
        found = translator.score_each(translator.translate(params, texts.source), texts)
        return {name: np.asarray(found[name]) for name in names}

    return scores


def make_samples(
    translator: Translator,
    split: Split,
    line: Callable[[str, str, str], str],
    count: int = 10,
) -> Callable[[Params], list[str]]:
    """Make a function that translates a few validation texts for the log.

    Args:
      translator: translator of the run.
      split: ``name -> pairs`` of a split.
      line: ``(source, answer, target) -> line``.
      count: number of samples.

    Returns:
      ``params -> lines``.
    """

    def samples(params: Params) -> list[str]:
        pairs = split("validation")
        rows = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
        chosen = pairs.select(rows)
        answers = translator.translate(params, chosen.source)
        return [
            line(source, translator.shown(answer.texts[0]), reference)
            for source, answer, reference in zip(
                chosen.source, answers, chosen.target, strict=True
            )
        ]

    return samples
