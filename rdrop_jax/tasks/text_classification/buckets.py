"""Batches of rows of similar length, in a small fixed set of shapes."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import HostBatch, local_rows

# Number of batches whose rows are sorted by length together.
WINDOW = 64
# ``(rows, time) -> batch``.
Make = Callable[[Int[np.ndarray, " rows"], int], HostBatch]


def choose_shapes(lengths: Int[np.ndarray, " rows"], count: int) -> tuple[int, ...]:
    """Choose at most ``count`` padded lengths that minimize padding.

    The solution is exact, by dynamic programming over the distinct lengths.

    Args:
      lengths: number of tokens of each row.
      count: maximum number of padded lengths.

    Returns:
      Padded lengths, ascending; the last is that of the longest row.

    Example:
      >>> choose_shapes(np.array([3, 4, 4, 9]), 2)
      (4, 9)
    """
    values, counts = np.unique(np.maximum(lengths, 1), return_counts=True)
    ends = np.concatenate([[0], values])
    rows = np.concatenate([[0], np.cumsum(counts)])
    tokens = np.concatenate([[0], np.cumsum(counts * values)])
    last = len(values)
    # padding[i, j]: padding of rows longer than ends[i] and at most ends[j].
    padding = ends[None] * (rows[None] - rows[:, None])
    padding = (padding - (tokens[None] - tokens[:, None])).astype(np.float64)
    padding[np.tril_indices(last + 1)] = np.inf
    least, before = padding[0], [np.zeros(last + 1, np.int64)]
    for _ in range(min(count, last) - 1):
        each = least[:, None] + padding
        chosen = np.argmin(each, axis=0)
        found = each[chosen, np.arange(last + 1)]
        gains = found < least
        least = np.where(gains, found, least)
        before.append(np.where(gains, chosen, -1))
    shapes, level = [last], len(before) - 1
    while level > 0:
        start = int(before[level][shapes[-1]])
        level -= 1
        if start > 0:
            shapes.append(start)
    return tuple(int(ends[i]) for i in reversed(shapes))


def make_shapes(max_length: int, count: int) -> tuple[int, ...]:
    """Return ``count`` evenly spaced lengths up to ``max_length``.

    Example:
      >>> make_shapes(128, 4)
      (32, 64, 96, 128)
    """
    return tuple(-(-max_length * i // count) for i in range(1, count + 1))


def fit(longest: int, shapes: tuple[int, ...]) -> int:
    """Return the smallest shape that fits a row of length ``longest``."""
    return shapes[int(np.searchsorted(shapes, longest))]


class BucketBatches:
    """Endless stream of batches; batch t is a pure function of (seed, t).

    Rows are reshuffled every epoch. The rows of `WINDOW` consecutive batches are sorted
    by length and split into batches, whose order is random. Each epoch is complete; a
    batch may span two epochs. A process builds only its own rows of a batch.

    Args:
      lengths: tokens of each row.
      make: function from rows and their padded length to a batch.
      batch_size: number of rows over all processes.
      shapes: padded lengths, ascending; the last fits all rows.
      seed: seed of the order.
      process: (index, count) of this process.
    """

    def __init__(
        self,
        lengths: Int[np.ndarray, " rows"],
        make: Make,
        *,
        batch_size: int,
        shapes: tuple[int, ...],
        seed: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        self._lengths, self._make, self._shapes = lengths, make, shapes
        self._batch_size, self._seed = batch_size, seed
        self._local = local_rows(batch_size, process)
        self.steps_per_epoch = len(lengths) / batch_size
        self.examples_per_step = float(batch_size)
        self._order = functools.lru_cache(maxsize=4)(self._make_order)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def __getitem__(self, step: int) -> HostBatch:
        rows, time = self.plan(step)
        return self._make(rows[self._local], time)

    def plan(self, step: int) -> tuple[Int[np.ndarray, " rows"], int]:
        """Return the global rows of batch ``step`` and its padded length."""
        rows = self._window(step // WINDOW)[step % WINDOW]
        return rows, fit(int(self._lengths[rows].max()), self._shapes)

    def _make_order(self, epoch: int) -> Int[np.ndarray, " rows"]:
        rng = np.random.default_rng((self._seed, 0, epoch))
        return rng.permutation(len(self._lengths))

    def _make_window(self, window: int) -> Int[np.ndarray, "batches rows"]:
        size, rows = WINDOW * self._batch_size, len(self._lengths)
        places = np.arange(window * size, (window + 1) * size)
        epochs, within = places // rows, places % rows
        taken = np.concatenate(
            [self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)]
        )
        taken = taken[np.argsort(self._lengths[taken], kind="stable")]
        batches = taken.reshape(WINDOW, self._batch_size)
        rng = np.random.default_rng((self._seed, 1, window))
        return batches[rng.permutation(WINDOW)]

    def padding(self, steps: int) -> float:
        """Return the fraction of padding in the first ``steps`` batches."""
        plans = [self.plan(step) for step in range(steps)]
        tokens = sum(int(self._lengths[rows].sum()) for rows, _ in plans)
        return 1 - tokens / sum(len(rows) * time for rows, time in plans)


def eval_order(lengths: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Return row numbers in the order of `eval_batches`."""
    return np.argsort(lengths, kind="stable")


def eval_batches(
    lengths: Int[np.ndarray, " rows"],
    make: Make,
    *,
    batch_size: int,
    shapes: tuple[int, ...],
) -> Iterator[tuple[Int[np.ndarray, " rows"], HostBatch]]:
    """Yield every row once, in batches of similar length.

    Args:
      lengths: tokens of each row.
      make: function from rows and their padded length to a batch.
      batch_size: rows per batch; the last batch repeats its last row until full.
      shapes: padded lengths.

    Yields:
      Row numbers, without repeats, and the batch.
    """
    order = eval_order(lengths)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        full = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
        yield rows, make(full, fit(int(lengths[rows].max()), shapes))
