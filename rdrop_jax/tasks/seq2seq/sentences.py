"""Encoded sentences of one language, concatenated or padded to one length."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Integer

from rdrop_jax.data.tokenizers import PLAIN, Special


class Sentences(NamedTuple):
    """Concatenated sentences of one language, without end-of-sentence tokens.

    Attributes:
      ids: ids of all sentences.
      starts: start offset of each sentence, and the end of the last one.
    """

    ids: Integer[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " sentences_and_one"]

    @property
    def lengths(self) -> Int[np.ndarray, " sentences"]:
        """Number of tokens of each sentence, including its end."""
        return np.diff(self.starts) + 1

    def sentence(self, row: int) -> Integer[np.ndarray, " time"]:
        """Return the ids of one sentence."""
        return self.ids[self.starts[row] : self.starts[row + 1]]


def concatenate(sentences: Iterable[list[int]], vocab_size: int) -> Sentences:
    """Concatenate sentences, with two bytes per token if the vocabulary allows it."""
    kind = "H" if vocab_size <= 2**16 else "i"
    flat, starts = array(kind), array("q", [0])
    for ids in sentences:
        flat.extend(ids)
        starts.append(len(flat))
    return Sentences(np.array(flat, kind), np.array(starts, np.int64))


def padded(
    sentences: list[np.ndarray], length: int, special: Special = PLAIN
) -> tuple[Int[np.ndarray, "rows length"], Bool[np.ndarray, "rows length"]]:
    """Append end-of-sentence tokens and pad on the right; return ids and mask."""
    ids = np.full((len(sentences), length), special.pad, np.int32)
    lengths = np.array([len(sentence) for sentence in sentences])
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        ids[row, len(sentence)] = special.eos
    return ids, np.arange(length)[None] <= lengths[:, None]
