"""Sentences of one language as ids, end to end, and as rows of one length."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from rdrop_jax.data.tokenizers import PLAIN, Special


class Side(NamedTuple):
    """Sentences of one language end to end, the ends of sentences left out.

    Attributes:
      ids: of all sentences.
      starts: where each begins, and where the last ends.
    """

    ids: Integer[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " sentences_and_one"]

    @property
    def lengths(self) -> Int[np.ndarray, " sentences"]:
        """Tokens of each, its end of sentence counted."""
        return np.diff(self.starts) + 1

    def sentence(self, row: int) -> Integer[np.ndarray, " time"]:
        """Ids of one."""
        return self.ids[self.starts[row] : self.starts[row + 1]]


def make_side(sentences: Iterable[list[int]], vocab_size: int) -> Side:
    """Sentences as one array, in two bytes per token where they suffice."""
    kind = "H" if vocab_size <= 2**16 else "i"
    flat, starts = array(kind), array("q", [0])
    for ids in sentences:
        flat.extend(ids)
        starts.append(len(flat))
    return Side(np.array(flat, kind), np.array(starts, np.int64))


def padded(
    sentences: list[np.ndarray], length: int, special: Special = PLAIN
) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """Sentences with their ends, padded on the right, and where they are."""
    ids = np.full((len(sentences), length), special.pad, np.int32)
    lengths = np.array([len(sentence) for sentence in sentences])
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        ids[row, len(sentence)] = special.eos
    return ids, np.arange(length)[None] <= lengths[:, None]
