"""Vocabularies, shapes of training batches and searches, from the config alone."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict
from tokenizers import Tokenizer, models

from rdrop_jax.core.passes import Batch, Params
from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary
from rdrop_jax.decoding.beam_search import Hypotheses, beam_search
from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.seq2seq.token_batches import make_shapes
from rdrop_jax.tasks.seq2seq.translator import Seq2SeqSpec, search_stages


def blank_vocabularies(size: int, *, joint: bool) -> Vocabularies:
    """Make placeholder vocabularies of a given size."""
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [f"token {i}" for i in range(size - len(names))]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    if joint:
        vocabulary = Vocabulary("joint", tokenizer.to_str())
        return Vocabularies(vocabulary, vocabulary)
    source, target = (Vocabulary(x, tokenizer.to_str()) for x in ("source", "target"))
    return Vocabularies(source, target)


def batch_shapes(config: ConfigDict, source: int, target: int) -> Shapes:
    """Return shape and dtype of each array of a batch of the longest pairs.

    Args:
      config: config of the run.
      source: number of source positions.
      target: number of target positions.
    """
    multiple = config.data.rows_multiple * config.accum_steps
    (shape,) = make_shapes([(source, target)], config.batch_tokens, multiple)
    rows = shape.rows
    return {
        "src": ((rows, source), "i4"),
        "src_where": ((rows, source), "?"),
        "inputs": ((rows, target), "i4"),
        "labels": ((rows, target), "i4"),
        "where": ((rows, target), "?"),
    }


def abstract_search(
    config: ConfigDict, spec: Seq2SeqSpec
) -> tuple[Callable[[Params, Batch], Hypotheses], Shapes]:
    """Return the beam search over a batch of the longest sources, and its shapes."""
    rows, sources = config.eval.batch_size, config.data.max_length
    fewest, most = spec.limits(sources)
    start, step = search_stages(spec.make_model(config))

    def search(params: Params, batch: Batch) -> Hypotheses:
        return beam_search(
            functools.partial(step, params),
            start(params, batch["src"], batch["src_where"], most + 1),
            spec.search,
            max_length=jnp.full(rows, most),
            min_length=jnp.full(rows, fewest),
            length=most + 1,
        )

    return search, {"src": ((rows, sources), "i4"), "src_where": ((rows, sources), "?")}
