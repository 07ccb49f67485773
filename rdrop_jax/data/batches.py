"""Rows to batches: endless and random-access to train, exact to evaluate."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np

from rdrop_jax.errors import InputError

Row = dict[str, Any]
HostBatch = dict[str, np.ndarray]


@runtime_checkable
class Rows(Protocol):
    """A random-access source of rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...


class TrainBatches:
    """Batch t for every t >= 0, a pure function of (seed, t).

    Each epoch is complete and shuffled anew; a batch may span two. A process makes only
    its own part of a batch.

    Args:
      rows: the training split.
      transform: ``(row, rng) -> row``; rng depends on (seed, position) alone.
      batch_size: rows over all processes.
      seed: of order and augmentation.
      process: (index, count) of this process.
    """

    def __init__(
        self,
        rows: Rows,
        transform: Callable[[Row, np.random.Generator], Row],
        *,
        batch_size: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        index, count = process
        if batch_size % count:
            raise InputError(
                f"batch_size: expected a multiple of {count} processes, found "
                f"{batch_size}"
            )
        stream = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
        self._stream = stream.random_map(transform)
        self._batch_size = batch_size
        self._local = range(
            index * batch_size // count, (index + 1) * batch_size // count
        )
        self.steps_per_epoch = len(rows) / batch_size
        self.examples_per_step = float(batch_size)

    def __getitem__(self, step: int) -> HostBatch:
        start = step * self._batch_size
        return stack([self._stream[start + i] for i in self._local])


def stack(rows: Sequence[Row]) -> HostBatch:
    """Rows with the same fields to one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def eval_batches(
    rows: Rows, transform: Callable[[Row], Row], *, batch_size: int
) -> Iterator[HostBatch]:
    """Every row once, in order; the last batch is padded.

    Args:
      rows: a split.
      transform: ``row -> row``.
      batch_size: rows per batch.

    Yields:
      Batches of one shape, with ``where`` [batch] False on padding.
    """
    for start in range(0, len(rows), batch_size):
        count = min(batch_size, len(rows) - start)
        batch = stack([transform(rows[start + i]) for i in range(count)])
        yield pad(batch, batch_size)


def pad(batch: HostBatch, batch_size: int) -> HostBatch:
    """Repeats the last row up to ``batch_size`` and adds ``where``."""
    count = len(next(iter(batch.values())))
    padded = {
        name: np.concatenate([x, np.repeat(x[-1:], batch_size - count, axis=0)])
        for name, x in batch.items()
    }
    return padded | {"where": np.arange(batch_size) < count}


def prefetch(
    make: Callable[[int], Any], start: int, stop: int, *, ahead: int
) -> Iterator[Any]:
    """``make(start), ..., make(stop - 1)``, some made ahead in threads.

    Args:
      make: pure function of the step.
      start: first step.
      stop: one past the last.
      ahead: how many are under way at once; 0 makes each when asked.

    Yields:
      Results in order; an exception of ``make`` is raised in its place.
    """
    if ahead == 0:
        yield from map(make, range(start, stop))
        return
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="data")
    try:
        pending: list[Future[Any]] = [
            pool.submit(make, step) for step in range(start, min(start + ahead, stop))
        ]
        for step in range(start, stop):
            done = pending.pop(0).result()
            if step + ahead < stop:
                pending.append(pool.submit(make, step + ahead))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
