"""Beam search over many examples of different lengths, with few compiled shapes."""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rdrop_jax.core.meshes import platform
from rdrop_jax.decoding import beam_search
from rdrop_jax.decoding.beam_search import Hypotheses, State
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.errors import InputError
from rdrop_jax.models.cache import Cache, grow, take_rows

Start = Callable[[Any, jax.Array, jax.Array, int], Cache]
Step = Callable[[Any, jax.Array, Cache], tuple[jax.Array, Cache]]


class Shapes(NamedTuple):
    """Static sizes of the compiled programs.

    Attributes:
      rows: batch sizes. A batch starts at the largest size; as examples finish, the
        unfinished ones move to a smaller batch.
      sources: lengths in tokens that sources are padded to.
      cache_lengths: cache lengths in positions; the cache grows from one to the next.
    """

    rows: tuple[int, ...] = (8, 16, 24, 32)
    sources: tuple[int, ...] = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
    cache_lengths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)


SHAPES = Shapes()
# GPUs and TPUs compile slowly, and padding costs them little.
_FEW_SHAPES = Shapes(sources=(32, 128, 512, 1024), cache_lengths=(64, 256, 1024))


def choose_shapes(rows: int, source: int, target: int) -> Shapes:
    """Choose the shapes of a search for the platform.

    Args:
      rows: batch size.
      source: maximum number of source tokens.
      target: maximum number of target tokens, including EOS.
    """
    cpu = platform() == "cpu"
    shapes = SHAPES if cpu else _FEW_SHAPES
    return Shapes(
        # The last few sources of a large batch use a batch of a quarter of its size.
        rows=(rows // 4, rows) if cpu and rows >= 16 else (rows,),
        sources=(*(n for n in shapes.sources if n < source), source),
        cache_lengths=(*(n for n in shapes.cache_lengths if n < target), target),
    )


class BestHypotheses(NamedTuple):
    """Best hypotheses of one example, best first.

    Attributes:
      tokens: ids of each hypothesis, without BOS and EOS.
      scores: log-probability divided by the length penalty; NaN if that of the model is
        NaN.
    """

    tokens: list[list[int]]
    scores: list[float]


Search = Callable[..., list[BestHypotheses]]


def make_search(
    start: Start, step: Step, options: SearchOptions, shapes: Shapes = SHAPES
) -> Search:
    """Make a beam search over any number of sources, compiled once per shape.

    Sources are sorted by length and searched in batches. Finished examples leave their
    batch; the rest continue in a smaller batch. The cache grows only as needed.
    Neither changes the results.

    Args:
      start: ``(params, src [batch, source], where, length) -> cache`` of one
        hypothesis per source, allocated for ``length`` positions.
      step: ``(params, ids [batch, beam], cache) -> (logits, cache)``.
      options: search options.
      shapes: static sizes.

    Returns:
      ``search(params, sources, max_lengths, min_lengths=None)``, which returns one
      `BestHypotheses` per source, in the order of the sources. Sources are lists of
      ids. Both lengths have one entry per source and count tokens before EOS.

    Raises:
      InputError: (from the search) a source or limit beyond the largest shape.
    """

    stages = _compiled(start, step, options, shapes)

    def search(
        params: Any,
        sources: Sequence[Sequence[int]],
        max_lengths: Sequence[int],
        min_lengths: Sequence[int] | None = None,
    ) -> list[BestHypotheses]:
        low = np.zeros(len(sources), int) if min_lengths is None else min_lengths
        longest = max(map(len, sources), default=0)
        if longest > shapes.sources[-1]:
            raise InputError(
                f"source: expected at most {shapes.sources[-1]} tokens, found {longest}"
            )
        limit = max(max_lengths, default=0)
        if limit >= shapes.cache_lengths[-1]:
            raise InputError(
                f"max_length: expected less than {shapes.cache_lengths[-1]}, found "
                f"{limit}"
            )
        found: list[Any] = [None] * len(sources)
        order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), i))
        size = max(shapes.rows)
        for offset in range(0, len(order), size):
            rows = np.asarray(order[offset : offset + size])
            fit = next(n for n in sorted(shapes.rows) if n >= len(rows))
            rows = np.pad(rows, (0, fit - len(rows)), constant_values=-1)
            src, where = _padded(sources, rows, shapes, options.pad)
            state = stages.begin(
                params,
                src,
                where,
                np.asarray(low, np.int32)[rows],
                np.asarray(max_lengths, np.int32)[rows],
                rows >= 0,
            )
            _search_batch(stages, params, state, rows, found)
        return found

    return search


class _Stages(NamedTuple):
    """Stages of a search, each compiled once per shape."""

    begin: Callable[..., State]
    run: Callable[..., State]
    widen: Callable[[State, int], State]
    shrink: Callable[..., State]
    best: Callable[[jax.Array, jax.Array], Hypotheses]
    shapes: Shapes


def _compiled(
    start: Start, step: Step, options: SearchOptions, shapes: Shapes
) -> _Stages:
    def begin(params: Any, src: Any, where: Any, low: Any, high: Any, live: Any) -> Any:
        return beam_search.first_step(
            functools.partial(step, params),
            start(params, src, where, shapes.cache_lengths[0]),
            options,
            max_length=high,
            min_length=low,
            where=live,
            length=shapes.cache_lengths[0],
        )

    def run(params: Any, state: State, live: Any) -> State:
        return beam_search.run(
            functools.partial(step, params), state, options, live=live
        )

    def best(tokens: Any, scores: Any) -> Hypotheses:
        return beam_search.best(tokens, scores, options)

    widen = functools.partial(_widen, pad=options.pad)
    return _Stages(
        begin=jax.jit(begin),
        run=jax.jit(run, donate_argnums=1),
        widen=jax.jit(widen, static_argnums=1),
        shrink=jax.jit(_shrink),
        best=jax.jit(best),
        shapes=shapes,
    )


def _search_batch(
    stages: _Stages, params: Any, state: State, rows: np.ndarray, found: list[Any]
) -> None:
    """Search until all examples are done; ``rows`` are indices into ``found``."""
    sizes = sorted(stages.shapes.rows)
    while True:
        smaller = max((n for n in sizes if n < len(rows)), default=0)
        state = stages.run(params, state, jnp.int32(smaller))
        done, at = (np.asarray(x) for x in (state.done, state.step))
        left = np.flatnonzero(~done)
        if len(left) <= smaller:
            best = stages.best(state.ended_tokens, state.ended_scores)
            _collect(best, rows, done, found)
            if not len(left):
                return
            size = next(n for n in sizes if n >= len(left))
            kept = np.zeros(size, np.int32)
            kept[: len(left)] = left
            rows = np.where(np.arange(size) < len(left), rows[kept], -1)
            state = stages.shrink(state, kept, rows < 0)
        if at == state.tokens.shape[-1]:
            cache_lengths = stages.shapes.cache_lengths
            state = stages.widen(
                state, cache_lengths[bisect.bisect_right(cache_lengths, at)]
            )


def _padded(
    sources: Any, rows: np.ndarray, shapes: Shapes, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(sources[i]) for i in rows if i >= 0)
    width = shapes.sources[bisect.bisect_left(shapes.sources, longest)]
    src = np.full((len(rows), width), pad, np.int32)
    where = np.zeros(src.shape, bool)
    for row, i in enumerate(rows):
        if i >= 0:
            src[row, : len(sources[i])] = sources[i]
            where[row, : len(sources[i])] = True
    return src, where


def _widen(state: State, length: int, pad: int) -> State:
    def more(tokens: jax.Array) -> jax.Array:
        widths = ((0, 0), (0, 0), (0, length - tokens.shape[-1]))
        return jnp.pad(tokens, widths, constant_values=pad)

    return state._replace(
        tokens=more(state.tokens),
        ended_tokens=more(state.ended_tokens),
        cache=grow(state.cache, length),
    )


def _shrink(state: State, rows: jax.Array, done: jax.Array) -> State:
    taken = {
        name: jnp.take(value, rows, axis=0, mode="clip")
        for name, value in state._asdict().items()
        if name not in ("step", "done", "cache")
    }
    return state._replace(**taken, done=done, cache=take_rows(state.cache, rows))


def _collect(
    best: Hypotheses, rows: np.ndarray, done: np.ndarray, found: list[Any]
) -> None:
    best = jax.tree.map(np.asarray, best)
    for row in np.flatnonzero(done & (rows >= 0)):
        ended = best.lengths[row] > 0
        found[rows[row]] = BestHypotheses(
            [
                tokens[: length - 1].tolist()
                for tokens, length in zip(
                    best.tokens[row][ended], best.lengths[row][ended], strict=True
                )
            ],
            best.scores[row][ended].tolist(),
        )
