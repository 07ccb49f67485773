"""Batches of rows: endless and random-access for training, exact for evaluation."""

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
    """Endless stream of batches; batch t is a pure function of (seed, t).

    Each epoch is complete and reshuffled; a batch may span two epochs. A process builds
    only its own rows of a batch.

    Args:
      rows: the training split.
      transform: function ``(row, rng) -> row``; rng depends only on (seed, position).
      batch_size: number of rows over all processes.
      seed: seed of order and augmentation.
      process: (index, count) of this process.
      workers: number of threads that build rows; 0 uses the caller's thread.
    """

    def __init__(
        self,
        rows: Rows,
        transform: Callable[[Row, np.random.Generator], Row],
        *,
        batch_size: int,
        seed: int,
        process: tuple[int, int] = (0, 1),
        workers: int = 0,
    ) -> None:
        stream = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
        self._stream = stream.random_map(transform)
        self._map = make_map(workers)
        self._batch_size = batch_size
        self._local = local_rows(batch_size, process)
        self.steps_per_epoch = len(rows) / batch_size
        self.examples_per_step = float(batch_size)

    def __getitem__(self, step: int) -> HostBatch:
        start = step * self._batch_size
        positions = (start + self._local).tolist()
        return stack(list(self._map(self._stream.__getitem__, positions)))


def local_rows(
    batch_size: int, process: tuple[int, int], field: str = "batch_size"
) -> np.ndarray:
    """Return the rows of a batch that a process builds.

    Args:
      batch_size: number of rows over all processes.
      process: (index, count) of the process.
      field: config field, for messages.

    Raises:
      InputError: the rows do not divide evenly over the processes.
    """
    index, count = process
    if batch_size % count:
        raise InputError(
            f"{field}: expected a multiple of {count} processes, found {batch_size}"
        )
    return np.arange(batch_size).reshape(count, -1)[index]


def stack(rows: Sequence[Row]) -> HostBatch:
    """Stack rows with the same fields into one batch."""
    batch = {}
    for name in rows[0]:
        parts = [np.asarray(row[name]) for row in rows]
        whole = np.empty((len(parts), *parts[0].shape), parts[0].dtype)
        batch[name] = np.stack(parts, out=whole)
    return batch


def make_map(workers: int) -> Callable[..., Iterator[Any]]:
    """Return a `map` that computes its results in threads, in order.

    Decoding and resizing release the GIL, so threads run in parallel without the copies
    and child processes of multiprocessing.

    Args:
      workers: number of threads; 0 returns the built-in `map`.

    Returns:
      Function ``(function, *iterables) -> results``.
    """
    if workers == 0:
        return map
    return ThreadPoolExecutor(workers, thread_name_prefix="rows").map


def eval_batches(
    rows: Rows,
    transform: Callable[[Row], Row],
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    ahead: int = 0,
) -> Iterator[HostBatch]:
    """Yield every row once, in order; the last batch is padded.

    Args:
      rows: rows of a split.
      transform: function ``row -> row``; rows with ``"where": False`` are not scored.
      batch_size: rows per batch, over all processes.
      process: (index, count) of this process, which builds its own rows of each batch.
      workers: number of threads that build rows.
      ahead: number of batches to prefetch.

    Yields:
      Batches of one shape; ``where`` [batch] is False for padding.
    """
    local = local_rows(batch_size, process, "eval.batch_size")
    mapped = make_map(workers)

    def make(number: int) -> HostBatch:
        positions = number * batch_size + local
        there = positions < len(rows)
        taken = np.minimum(positions, len(rows) - 1)
        unique = dict.fromkeys(taken.tolist())
        made = dict(
            zip(unique, mapped(lambda i: transform(rows[i]), unique), strict=True)
        )
        batch = stack([made[i] for i in taken.tolist()])
        return batch | {"where": there & batch.get("where", True)}

    yield from prefetch(make, 0, -(-len(rows) // batch_size), ahead=ahead)


def pad(batch: HostBatch, batch_size: int) -> HostBatch:
    """Repeat the last row up to ``batch_size`` and add the mask ``where``."""
    count = len(next(iter(batch.values())))
    padded = {
        name: np.concatenate([x, np.repeat(x[-1:], batch_size - count, axis=0)])
        for name, x in batch.items()
    }
    return padded | {"where": np.arange(batch_size) < count}


def prefetch(
    make: Callable[[int], Any],
    start: int,
    stop: int,
    *,
    ahead: int,
    late: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Yield ``make(start), ..., make(stop - 1)``, prefetched in threads.

    Args:
      make: pure function of the step.
      start: first step.
      stop: one past the last.
      ahead: maximum number of pending results; 0 computes each on request.
      late: function called if a requested result is not ready.

    Yields:
      Results in order; an exception of ``make`` is raised when its result is due.
    """
    if ahead == 0:
        for step in range(start, stop):
            late()
            yield make(step)
        return
    pool = ThreadPoolExecutor(ahead, thread_name_prefix="data")
    try:
        pending: list[Future[Any]] = [
            pool.submit(make, step) for step in range(start, min(start + ahead, stop))
        ]
        for step in range(start, stop):
            if not pending[0].done():
                late()
            done = pending.pop(0).result()
            if step + ahead < stop:
                pending.append(pool.submit(make, step + ahead))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
