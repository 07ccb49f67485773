"""Blocks of one long text, for training and for scoring with context."""

from typing import Any

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import Row


class Blocks:
    """Contiguous blocks of a text; the last may be padded.

    Block boundaries ignore sentences and documents (fairseq's break mode none).

    Args:
      ids: the text.
      size: tokens per block.
      before: id that precedes the first token.
    """

    def __init__(self, ids: Int[np.ndarray, " tokens"], size: int, before: int) -> None:
        self._ids, self._size, self._before = ids, size, before

    def __len__(self) -> int:
        return -(-len(self._ids) // self._size)

    def __getitem__(self, row: int) -> Row:
        start = row * self._size
        return piece(self._ids, start, start, self._size, self._before)

    def __repr__(self) -> str:
        return f"Blocks({len(self._ids)}, {self._size})"


class Windows:
    """Overlapping blocks of context tokens followed by scored tokens.

    Each block scores the next ``size - context`` tokens, given up to ``context`` tokens
    before them. Together they score every token once, including the first.

    Args:
      ids: the text.
      size: tokens per block.
      context: context tokens per block; below ``size``.
      before: id that precedes the first token.
    """

    def __init__(
        self, ids: Int[np.ndarray, " tokens"], size: int, context: int, before: int
    ) -> None:
        self._ids, self._size, self._context = ids, size, context
        self._before = before

    def __len__(self) -> int:
        return -(-len(self._ids) // (self._size - self._context))

    def __getitem__(self, row: int) -> Row:
        new = row * (self._size - self._context)
        start = max(new - self._context, 0)
        end = min(new + self._size - self._context, len(self._ids))
        return piece(self._ids[:end], start, new, self._size, self._before)

    def __repr__(self) -> str:
        return f"Windows({len(self._ids)}, {self._size}, {self._context})"


def piece(ids: Any, start: int, new: int, size: int, before: int) -> Row:
    """Return ``size`` tokens of a text, padded after its end.

    Args:
      ids: the text.
      start: position of the first token.
      new: position of the first scored token.
      size: number of tokens.
      before: id that precedes the first token.

    Returns:
      ``labels`` [size], ``inputs`` [size], shifted by one token, and the mask
      ``where`` [size] of scored tokens.
    """
    labels = np.zeros(size, np.int32)
    inputs = np.zeros(size, np.int32)
    found = ids[start : start + size]
    labels[: len(found)] = found
    inputs[1:] = labels[:-1]
    inputs[0] = ids[start - 1] if start else before
    at = start + np.arange(size)
    return {
        "inputs": inputs,
        "labels": labels,
        "where": (at >= new) & (at < start + len(found)),
    }
