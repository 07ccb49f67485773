"""Batches with about equal token counts, in a small fixed set of shapes.

Pairs are sorted into a few buckets by source and target length. A batch holds as many
pairs of one bucket as fit the token budget, so each bucket is one shape and one
compilation.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from rdrop_jax.data.batches import HostBatch
from rdrop_jax.data.tokenizers import PLAIN, Special
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq.sentences import Sentences, padded

# Maximum number of distinct length pairs before lengths are rounded up.
_DIFFERENT = 10_000


class Shape(NamedTuple):
    """Shape of a batch: source positions, target positions and rows."""

    source: int
    target: int
    rows: int


def choose_lengths(
    source: Int[np.ndarray, " pairs"], target: Int[np.ndarray, " pairs"], count: int
) -> list[tuple[int, int]]:
    """Choose the lengths of at most ``count`` buckets so that padding is low.

    Buckets are initialized to quantiles of the longer side. A local search then moves
    one length at a time while that reduces padding, in steps of 4, 2 and 1. With more
    than 10,000 distinct length pairs, lengths and steps are rounded to a larger grain.

    Args:
      source: length of each source.
      target: length of each target.
      count: maximum number of buckets.

    Returns:
      Source and target length of each bucket, smallest first. The last fits all pairs.
    """
    both, grain = np.stack([source, target], axis=1), 1
    pairs, weights = np.unique(both, axis=0, return_counts=True)
    while len(pairs) > _DIFFERENT:
        grain *= 2
        rounded = np.minimum(-(-both // grain) * grain, both.max(axis=0, keepdims=True))
        pairs, weights = np.unique(rounded, axis=0, return_counts=True)
    quantiles = np.quantile(
        np.maximum(source, target), np.arange(1, count) / count, method="higher"
    )
    square = np.unique(quantiles)[:, None].repeat(2, axis=1)
    most = pairs.max(axis=0, keepdims=True)
    # Clip: if one side is far shorter (summaries), squares would exceed its maximum.
    corners = np.minimum(np.concatenate([square, most]), most)
    cost = _padded(corners, pairs, weights)
    for move in (4 * grain, 2 * grain, grain):
        moved = True
        while moved:
            moved = False
            for at in np.ndindex(corners.shape):
                for by in (-move, move):
                    other = corners.copy()
                    other[at] += by
                    found = _padded(other, pairs, weights)
                    if found < cost:
                        corners, cost, moved = other, found, True
    if grain > 1:  # coarse steps may exceed the maximum lengths
        corners = np.minimum(corners, most)
    unique = {(int(s), int(t)) for s, t in corners}
    return sorted(unique, key=lambda corner: (sum(corner), corner))


def _padded(corners: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> float:
    """Count padded positions with each pair in the smallest bucket that it fits."""
    fits = np.all(pairs[:, None] <= corners[None], axis=-1)
    sizes = np.where(fits, corners.sum(axis=1)[None], np.inf)
    return float(sizes.min(axis=1) @ weights)


def make_shapes(
    lengths: list[tuple[int, int]], max_tokens: int, multiple: int
) -> list[Shape]:
    """Compute the batch shape of each bucket, with as many rows as fit.

    Args:
      lengths: source and target lengths, as returned by `choose_lengths`.
      max_tokens: maximum of rows times the longer side.
      multiple: divisor of the number of rows.

    Returns:
      The shapes, in the same order.

    Raises:
      InputError: the longest bucket does not fit.
    """
    shapes = []
    for source, target in lengths:
        rows = max_tokens // max(source, target) // multiple * multiple
        if rows < 1:
            longest = max(source, target)
            raise InputError(
                f"batch_tokens: expected at least {multiple * longest}, which is "
                f"{multiple} rows of {longest} tokens, found {max_tokens}. Increase "
                "it, or lower data.max_length"
            )
        shapes.append(Shape(source, target, rows))
    return shapes


def assign(
    source: Int[np.ndarray, " pairs"],
    target: Int[np.ndarray, " pairs"],
    shapes: list[Shape],
) -> Int[np.ndarray, " pairs"]:
    """Assign each pair to the first shape that it fits."""
    found = np.full(len(source), len(shapes))
    for index in reversed(range(len(shapes))):
        shape = shapes[index]
        fits = (source <= shape.source) & (target <= shape.target)
        found = np.where(fits, index, found)
    if np.any(found == len(shapes)):
        raise ValueError("a pair is longer than every shape")
    return found


class Batch(NamedTuple):
    """Shape and pairs of a batch, at most ``shape.rows`` pairs."""

    shape: Shape
    pairs: Int[np.ndarray, " pairs"]


def cut(
    order: Int[np.ndarray, " pairs"],
    buckets: Int[np.ndarray, " pairs"],
    shapes: list[Shape],
) -> Iterator[Batch]:
    """Split an epoch into batches that contain every pair once.

    The remainder of a bucket moves to the next larger bucket if that costs less padding
    than a partial batch. The number of batches and their shapes do not depend on the
    order.

    Args:
      order: permutation of all pairs.
      buckets: index of the shape of each pair.
      shapes: shapes of the buckets, smallest first.

    Yields:
      Batches.
    """
    grouped = order[np.argsort(buckets[order], kind="stable")]
    ends = np.searchsorted(buckets[grouped], np.arange(len(shapes) + 1))
    waiting = [grouped[a:b] for a, b in itertools.pairwise(ends)]
    for index, shape in enumerate(shapes):
        pairs = waiting[index]
        left = len(pairs) % shape.rows
        larger = (
            i
            for i, other in enumerate(shapes[index + 1 :], index + 1)
            if other.source >= shape.source and other.target >= shape.target
        )
        if left and (into := next(larger, None)) is not None:
            size = shape.source + shape.target
            more = shapes[into].source + shapes[into].target - size
            if left * more < (shape.rows - left) * size:
                waiting[into] = np.concatenate([waiting[into], pairs[-left:]])
                pairs = pairs[:-left]
        for start in range(0, len(pairs), shape.rows):
            yield Batch(shape, pairs[start : start + shape.rows])


class TokenBatches:
    """Endless stream of epochs; batch t is a pure function of (seed, t).

    Each epoch contains every pair once, shuffled within and across buckets. Each
    process builds only its own rows of a batch.

    Args:
      source: encoded sentences.
      target: encoded translations.
      shapes: shapes of the batches.
      seed: seed of the order.
      process: (index, count) of this process.
      special: ids of padding, end of sentence and decoder start.
    """

    def __init__(
        self,
        source: Sentences,
        target: Sentences,
        shapes: list[Shape],
        *,
        seed: int,
        process: tuple[int, int] = (0, 1),
        special: Special = PLAIN,
    ) -> None:
        bad = [shape for shape in shapes if shape.rows % process[1]]
        if bad:
            raise InputError(
                f"data.rows_multiple: expected a multiple of {process[1]} processes, "
                f"found batches of {bad[0].rows} rows"
            )
        self._pairs = (source, target)
        self._shapes, self._seed, self._process = shapes, seed, process
        self._special = special
        self._buckets = assign(source.lengths, target.lengths, shapes)
        # The order of an epoch is drawn once for all of its batches.
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)
        self._steps = len(self._epoch(0))
        self.steps_per_epoch = float(self._steps)
        self.examples_per_step = len(self._buckets) / self._steps

    @property
    def shapes(self) -> list[Shape]:
        """Possible shapes of a batch."""
        return self._shapes

    def plan(self, step: int) -> Batch:
        """Return the shape and pairs of batch ``step``."""
        epoch, position = divmod(step, self._steps)
        return self._epoch(epoch)[position]

    def _make_epoch(self, epoch: int) -> list[Batch]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._buckets))
        batches = list(cut(order, self._buckets, self._shapes))
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, step: int) -> HostBatch:
        index, count = self._process
        batch = self.plan(step)
        part = batch.shape.rows // count
        rows = range(index * part, (index + 1) * part)
        return collate(*self._pairs, batch, rows, self._special)

    @property
    def padding(self) -> float:
        """Fraction of source and target positions that are padding."""
        cells = sum(
            batch.shape.rows * (batch.shape.source + batch.shape.target)
            for batch in self._epoch(0)
        )
        tokens = sum(int(texts.lengths.sum()) for texts in self._pairs)
        return 1 - tokens / cells


def collate(
    source: Sentences,
    target: Sentences,
    batch: Batch,
    rows: Iterable[int],
    special: Special = PLAIN,
) -> HostBatch:
    """Build the arrays of some rows of a batch.

    Args:
      source: encoded sentences.
      target: encoded translations.
      batch: shape and pairs.
      rows: rows of the batch; rows past the last pair repeat it and are masked.
      special: ids of padding, end of sentence and decoder start.

    Returns:
      ``src`` and ``src_where`` [rows, source]; ``inputs``, which begin with the decoder
      start token, ``labels``, which end with EOS, and ``where`` [rows, target].
    """
    count = len(batch.pairs)
    pairs = [int(batch.pairs[min(row, count - 1)]) for row in rows]
    there = np.array([row < count for row in rows])
    shape = batch.shape
    src, src_where = padded([source.sentence(i) for i in pairs], shape.source, special)
    labels, where = padded([target.sentence(i) for i in pairs], shape.target, special)
    inputs = np.roll(labels, 1, axis=1)
    inputs[:, 0] = special.start
    return {
        "src": src,
        "src_where": src_where,
        "inputs": np.where(where, inputs, special.pad),
        "labels": labels,
        "where": where & there[:, None],
    }
