"""Windows of one long text, for training and for scoring with context."""

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import Row


class Windows:
    """Windows of context tokens followed by scored tokens.

    Each window scores the next ``size - context`` tokens, given up to ``context``
    tokens before them. Together they score every token once, including the first. The
    last window may be padded. Boundaries ignore sentences and documents (fairseq's
    break mode none). Training uses windows without context.

    Args:
      ids: the text.
      size: tokens per window.
      before: id that precedes the first token.
      context: context tokens per window; below ``size``.
    """

    def __init__(
        self,
        ids: Int[np.ndarray, " tokens"],
        size: int,
        before: int,
        context: int = 0,
    ) -> None:
        self._ids, self._size, self._before = ids, size, before
        self._context, self._new = context, size - context

    def __len__(self) -> int:
        return -(-len(self._ids) // self._new)

    def __getitem__(self, row: int) -> Row:
        """Return ``inputs`` and ``labels`` [size], and the mask ``where`` [size]."""
        new = row * self._new
        start = max(new - self._context, 0)
        end = min(new + self._new, len(self._ids))
        labels = np.zeros(self._size, np.int32)
        inputs = np.zeros(self._size, np.int32)
        labels[: end - start] = self._ids[start:end]
        inputs[1:] = labels[:-1]
        inputs[0] = self._ids[start - 1] if start else self._before
        at = start + np.arange(self._size)
        return {"inputs": inputs, "labels": labels, "where": (at >= new) & (at < end)}
