"""The task, shapes of training batches and sampling, from the config alone."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.core.passes import Batch, Params
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.language_modeling.config import make_model
from rdrop_jax.tasks.language_modeling.generation import TextGenerator
from rdrop_jax.tasks.language_modeling.task import make_task
from rdrop_jax.tasks.language_modeling.token_files import Corpus
from rdrop_jax.tasks.language_modeling.vocabularies import END, Tokens
from rdrop_jax.training.task import Task


def abstract(config: ConfigDict) -> tuple[Task, Shapes]:
    """Build the task without its text, and describe a training batch.

    Args:
      config: resolved config.

    Raises:
      InputError: the config leaves the size of the vocabulary to the text.
    """
    data, corpus = config.data, _corpus(config)
    block: tuple[int, ...] = (config.batch_size, data.block_size)
    shapes: Shapes = {
        "inputs": (block, "i4"),
        "labels": (block, "i4"),
        "where": (block, "?"),
    }
    return make_task(config, corpus), shapes


def abstract_decode(config: ConfigDict) -> tuple[Task, Callable[..., Any], Shapes]:
    """Return the task, and the sampling of a batch of the longest continuations."""
    corpus, rows = _corpus(config), config.eval.batch_size
    module = make_model(config, len(corpus.vocabulary))
    generator = TextGenerator(config, module, corpus.vocabulary)

    def decode(params: Params, batch: Batch) -> Any:
        return generator.run(
            params, batch["tokens"], batch["lengths"], batch["numbers"]
        )

    shapes: Shapes = {
        "tokens": ((rows, module.max_length), "i4"),
        "lengths": ((rows,), "i4"),
        "numbers": ((rows,), "i4"),
    }
    return make_task(config, corpus), decode, shapes


def _corpus(config: ConfigDict) -> Corpus:
    data = config.data
    if not data.vocab_size:
        raise InputError(
            "data.vocab_size: expected the number of tokens, got 0, which leaves it to "
            "the text. Set it, as --config.data.vocab_size=267735 for WikiText-103."
        )
    names = [END, *(f"token {i}" for i in range(data.vocab_size - 1))]
    return Corpus(Tokens("words", names), {}, {})
