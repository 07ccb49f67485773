"""The task and shapes of training batches, from the config alone."""

from ml_collections import ConfigDict

from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.seq2seq.abstract import batch_shapes, blank_vocabularies
from rdrop_jax.tasks.summarization.task import with_vocabulary
from rdrop_jax.training.task import Task


def abstract(config: ConfigDict) -> tuple[Task, Shapes]:
    """Build the task without its data, and describe a batch of the longest documents.

    Args:
      config: resolved config.
    """
    data = config.data
    vocabularies = blank_vocabularies(data.vocab_size, joint=True)
    shapes = batch_shapes(config, data.max_length, data.max_target_length)
    return with_vocabulary(config, vocabularies), shapes
