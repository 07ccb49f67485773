"""Blocks of one long text: to train on, and to score with context before them."""

from typing import Any

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import Row


class Blocks:
    """Contiguous blocks of a text; the last may be cut off.

    Sentences and documents begin anywhere in a block (fairseq's break mode none).

    Args:
      ids: the text.
      size: tokens per block.
      before: id that stands before the first token.
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
    """Blocks of which the last tokens are scored, the others are context.

    Each scores the next ``size - context`` tokens after up to ``context`` before them,
    so that all together score every token once, the first one included.

    Args:
      ids: the text.
      size: tokens per block.
      context: of them; below ``size``.
      before: id that stands before the first token.
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
    """``size`` tokens of a text, padded where it ends.

    Args:
      ids: the text.
      start: first token.
      new: first token that counts.
      size: tokens.
      before: id that stands before the first token.

    Returns:
      ``labels`` [size], ``inputs``, which are one token behind, and ``where`` they
      count.
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
