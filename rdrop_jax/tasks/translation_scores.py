"""Scores of a translator on whole splits, and a few translations to read."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.losses import softmax_cross_entropy
from rdrop_jax.core.passes import Batch, Forward, Params
from rdrop_jax.data import encoded, token_batches
from rdrop_jax.data.parallel import Pairs
from rdrop_jax.runtime.mesh import put
from rdrop_jax.tasks.base import Evaluator
from rdrop_jax.tasks.translator import Translator

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
    """Cross entropy per token, and scores of beam search, over a whole split."""
    texts, (source, target, _) = split(name), encode(name)
    tokens = int(target.lengths.sum())
    batches = _eval_batches(config, source, target)

    @jax.jit
    def score(params: Params, batch: Batch) -> jax.Array:
        logits = forward(params, batch, None)
        return jnp.sum(
            softmax_cross_entropy(logits, batch["labels"], where=batch["where"])
        )

    def evaluate(params: Params) -> dict[str, float]:
        nll = 0.0
        for batch in batches:
            rows = token_batches.collate(source, target, batch, range(batch.shape.rows))
            nll += float(score(params, put(mesh, rows, whole=True)))
        answers = translator.translate(params, texts.source)
        hypotheses = [answer.texts[0] for answer in answers]
        loss = nll / tokens
        return {
            **translator.score(hypotheses, texts.target),
            "loss": loss,
            "perplexity": float(np.exp(min(loss, 700.0))),
            "examples": len(texts),
        }

    return evaluate


def _eval_batches(
    config: ConfigDict, source: token_batches.Side, target: token_batches.Side
) -> list[token_batches.Batch]:
    lengths = token_batches.choose_lengths(
        source.lengths, target.lengths, config.data.buckets
    )
    # No update to fill here: as many tokens as a microbatch holds.
    room = config.batch_size // config.accum_steps
    multiple = config.data.rows_multiple
    room = max(room, multiple * max(map(max, lengths)))
    shapes = token_batches.make_shapes(lengths, room, multiple)
    buckets = token_batches.assign(source.lengths, target.lengths, shapes)
    return list(token_batches.cut(np.arange(len(buckets)), buckets, shapes))


def make_samples(
    translator: Translator, split: Split, count: int = 10
) -> Callable[[Params], list[str]]:
    """A few validation sentences with their translations, as lines to read."""

    def samples(params: Params) -> list[str]:
        pairs = split("validation")
        rows = np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)
        chosen = pairs.select(rows)
        answers = translator.translate(params, chosen.source)
        return [
            f"{source} -> {translator.shown(answer.texts[0])} ({reference})"
            for source, answer, reference in zip(
                chosen.source, answers, chosen.target, strict=True
            )
        ]

    return samples
