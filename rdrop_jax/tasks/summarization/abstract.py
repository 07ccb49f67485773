"""The task, shapes of training batches and the search, from the config alone."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.seq2seq.abstract import (
    abstract_search,
    batch_shapes,
    blank_vocabularies,
)
from rdrop_jax.tasks.summarization.task import make_spec, with_vocabulary
from rdrop_jax.training.task import Task


def abstract(config: ConfigDict) -> tuple[Task, Shapes]:
    """Build the task without its data, and describe a batch of the longest documents.

    Args:
      config: resolved config.
    """
    data = config.data
    vocabularies = _vocabularies(config)
    shapes = batch_shapes(config, data.max_length, data.max_target_length)
    return with_vocabulary(config, vocabularies), shapes


def abstract_decode(config: ConfigDict) -> tuple[Task, Callable[..., Any], Shapes]:
    """Return the task, and the beam search over a batch of the longest sources."""
    vocabularies = _vocabularies(config)
    search, shapes = abstract_search(config, make_spec(config, vocabularies))
    return with_vocabulary(config, vocabularies), search, shapes


def _vocabularies(config: ConfigDict) -> Vocabularies:
    data = config.data
    return blank_vocabularies(data.vocab_size, joint=True)
