"""Batches of rows of about one length, in a small fixed set of shapes."""

import functools
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import HostBatch
from rdrop_jax.errors import InputError

# Batches that are sorted by length together.
WINDOW = 64
# ``(rows, time) -> batch``.
Make = Callable[[Int[np.ndarray, " rows"], int], HostBatch]


def choose_shapes(lengths: Int[np.ndarray, " rows"], count: int) -> tuple[int, ...]:
    """The lengths, ``count`` at most, that pad these rows least.

    Exact, by dynamic programming over the last row that each length takes.

    Args:
      lengths: tokens of each row.
      count: how many lengths to choose at most.

    Returns:
      Lengths, ascending; the last is that of the longest row.

    Example:
      >>> choose_shapes(np.array([3, 4, 4, 9]), 2)
      (4, 9)
    """
    rows = np.cumsum(np.bincount(lengths))
    tokens = np.cumsum(np.bincount(lengths) * np.arange(len(rows)))
    last = len(rows) - 1
    # padding[i, j] of the rows longer than i and at most j, at length j.
    ends = np.arange(last + 1)
    padding = ends[None] * (rows[None] - rows[:, None])
    padding = (padding - (tokens[None] - tokens[:, None])).astype(np.float64)
    padding[np.tril_indices(last + 1)] = np.inf
    least, before = padding[0], [np.zeros(last + 1, np.int64)]
    for _ in range(min(count, last) - 1):
        each = least[:, None] + padding
        chosen = np.argmin(each, axis=0)
        gains = each[chosen, ends] < least
        least = np.where(gains, each[chosen, ends], least)
        before.append(np.where(gains, chosen, -1))
    shapes, level = [last], len(before) - 1
    while level > 0:
        start = int(before[level][shapes[-1]])
        level -= 1
        if start > 0:
            shapes.append(start)
    return tuple(reversed(shapes))


def make_shapes(max_length: int, count: int) -> tuple[int, ...]:
    """Lengths in even steps: ``count`` of them up to the longest.

    Example:
      >>> make_shapes(128, 4)
      (32, 64, 96, 128)
    """
    return tuple(-(-max_length * i // count) for i in range(1, count + 1))


def fit(longest: int, shapes: tuple[int, ...]) -> int:
    """The smallest shape that a row fits."""
    return shapes[int(np.searchsorted(shapes, longest))]


class BucketBatches:
    """Batch t for every t >= 0, a pure function of (seed, t).

    Rows are shuffled, each epoch anew, and stand in one endless stream. Every `WINDOW`
    batches of it are sorted by length, cut, and put in random order. Each epoch is
    complete; a batch may span two. A process makes only its own rows of a batch.

    Args:
      lengths: tokens of each row.
      make: rows and their padded length to a batch.
      batch_size: rows over all processes.
      shapes: lengths that batches may have, ascending; the last fits all rows.
      seed: of the order.
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
        index, count = process
        if batch_size % count:
            raise InputError(
                f"batch_size: expected a multiple of {count} processes, found "
                f"{batch_size}"
            )
        self._lengths, self._make, self._shapes = lengths, make, shapes
        self._batch_size, self._seed = batch_size, seed
        part = batch_size // count
        self._local = slice(index * part, (index + 1) * part)
        self.steps_per_epoch = len(lengths) / batch_size
        self.examples_per_step = float(batch_size)
        self._order = functools.lru_cache(maxsize=4)(self._make_order)
        self._window = functools.lru_cache(maxsize=4)(self._make_window)

    def __getitem__(self, step: int) -> HostBatch:
        rows, time = self.plan(step)
        return self._make(rows[self._local], time)

    def plan(self, step: int) -> tuple[Int[np.ndarray, " rows"], int]:
        """Rows of batch ``step``, those of all processes, and its length."""
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
        """Share of the positions of the first batches that hold no token."""
        plans = [self.plan(step) for step in range(steps)]
        tokens = sum(int(self._lengths[rows].sum()) for rows, _ in plans)
        return 1 - tokens / sum(len(rows) * time for rows, time in plans)


def eval_batches(
    lengths: Int[np.ndarray, " rows"],
    make: Make,
    *,
    batch_size: int,
    shapes: tuple[int, ...],
) -> Iterator[tuple[Int[np.ndarray, " rows"], HostBatch]]:
    """Every row once, those of about one length together.

    Args:
      lengths: tokens of each row.
      make: rows and their padded length to a batch.
      batch_size: rows per batch; the last one repeats a row until it is full.
      shapes: lengths that batches may have.

    Yields:
      Which rows, without those repeated, and the batch.
    """
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        full = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
        yield rows, make(full, fit(int(lengths[rows].max()), shapes))
