"""The task and shapes of training batches, from the config alone."""

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.field_checks import Shapes
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
    data = config.data
    if not data.vocab_size:
        raise InputError(
            "data.vocab_size: expected the number of tokens, got 0, which leaves it to "
            "the text. Set it, as --config.data.vocab_size=267735 for WikiText-103."
        )
    names = [END, *(f"token {i}" for i in range(data.vocab_size - 1))]
    vocabulary = Tokens("words", names)
    block: tuple[int, ...] = (config.batch_size, data.block_size)
    shapes: Shapes = {
        "inputs": (block, "i4"),
        "labels": (block, "i4"),
        "where": (block, "?"),
    }
    return make_task(config, Corpus(vocabulary, {}, {})), shapes
