"""Vocabularies and shapes of training batches, from the config alone."""

from ml_collections import ConfigDict
from tokenizers import Tokenizer, models

from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary
from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.seq2seq.token_batches import make_shapes


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
