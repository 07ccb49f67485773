"""Beam search with a cache and static shapes, for any model.

A search step takes the logits of every live hypothesis and follows fairseq's generator:

- The ``beam`` best non-EOS continuations over all hypotheses of an example become the
  next live ones, regardless of how many hypotheses finish in the same step.
- EOS finishes a hypothesis if it is among the ``beam`` best of all continuations.
- Finished hypotheses score ``log p / length ** length_penalty``; length includes EOS.
- EOS is forced after ``max_length`` tokens and forbidden before ``min_length``. EOS
  and the start token do not count towards these limits; a forced first token does.
- An example is done when ``beam`` hypotheses have finished.

Differences from fairseq: length limits are per example, not set by the longest source
of the batch, so results do not depend on the other examples. An example is also done
once no live hypothesis can reach its ``n_best`` (see `SearchOptions`), which does not
change results. If more than ``beam`` hypotheses finish in the last step, those with the
best final scores are kept. Ties go to the hypothesis that finished first, then to the
lower beam, then to the lower id.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.decoding.constraints import forbid_repeats
from rdrop_jax.decoding.search_options import SearchOptions, divisor
from rdrop_jax.decoding.top_k import top_k
from rdrop_jax.models.cache import Cache, reorder

TokensToLogits = Callable[[Array, Cache], tuple[Array, Cache]]
_NEVER = -jnp.inf


class Hypotheses(NamedTuple):
    """Finished hypotheses of a search, best first.

    Attributes:
      tokens: chosen ids including EOS, excluding BOS; right-padded.
      lengths: number of tokens including EOS; 0 if fewer than ``n_best`` finished.
      scores: log-probability divided by the length penalty; -inf if absent.
    """

    tokens: Int[Array, "batch n_best time"]
    lengths: Int[Array, "batch n_best"]
    scores: Float[Array, "batch n_best"]


class State(NamedTuple):
    """Search state between two steps.

    Attributes:
      step: number of tokens in each live hypothesis.
      tokens: tokens of the live hypotheses, padded after ``step``.
      scores: log-probabilities of live hypotheses, best first; -inf for empty slots.
      ended_tokens: tokens of the finished hypotheses.
      ended_scores: final scores, best first; -inf for empty slots.
      done: True for examples that need no further step.
      min_length: minimum number of tokens before EOS.
      max_length: maximum number of tokens before EOS.
      cache: model cache of the live hypotheses.
    """

    step: Int[Array, ""]
    tokens: Int[Array, "batch beam time"]
    scores: Float[Array, "batch beam"]
    ended_tokens: Int[Array, "batch beam time"]
    ended_scores: Float[Array, "batch beam"]
    done: Bool[Array, "batch"]
    min_length: Int[Array, "batch"]
    max_length: Int[Array, "batch"]
    cache: Cache


def beam_search(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    options: SearchOptions,
    *,
    max_length: Int[Array, "batch"],
    min_length: Int[Array, "batch"],
    length: int,
) -> Hypotheses:
    """Run beam search over a batch; call it under jit.

    Args:
      tokens_to_logits: ``(ids [batch, beam], cache) -> (logits [batch, beam, vocab],
        cache)``; ids are the last tokens of the hypotheses.
      cache: cache of one hypothesis per example, allocated for ``length`` positions.
      options: search options.
      max_length: maximum number of tokens before EOS, clipped to ``length - 1``.
      min_length: minimum number of tokens before EOS.
      length: static number of token slots, EOS included.

    Returns:
      The ``n_best`` hypotheses of each example.

    Raises:
      ValueError: invalid options.

    Example:
      >>> import jax.numpy as jnp
      >>> def after(ids, cache):  # 0 pad, 1 BOS, 2 EOS: 3 follows BOS, then EOS
      ...     return jnp.eye(4)[jnp.where(ids == 1, 3, 2)] * 9, cache
      >>> options = SearchOptions(bos=1, eos=2, pad=0, beam=2)
      >>> found = beam_search(after, Cache((), (), jnp.int32(0)), options,
      ...     max_length=jnp.array([3]), min_length=jnp.array([0]), length=4)
      >>> found.tokens.tolist()
      [[[3, 2, 0, 0]]]
    """
    max_length = jnp.minimum(max_length, length - 1)
    state = first_step(
        tokens_to_logits,
        cache,
        options,
        max_length=max_length,
        min_length=min_length,
        where=jnp.ones(max_length.shape, bool),
        length=length,
    )
    state = run(tokens_to_logits, state, options)
    return best(state.ended_tokens, state.ended_scores, options)


def first_step(
    tokens_to_logits: TokensToLogits,
    cache: Cache,
    options: SearchOptions,
    *,
    max_length: Int[Array, "batch"],
    min_length: Int[Array, "batch"],
    where: Bool[Array, "batch"],
    length: int,
) -> State:
    """Run the first step, from one hypothesis per example.

    Args:
      tokens_to_logits: see `beam_search`.
      cache: see `beam_search`.
      options: see `beam_search`.
      max_length: see `beam_search`.
      min_length: see `beam_search`.
      where: False for rows that only pad the batch.
      length: number of token slots.

    Returns:
      The state after the first step.
    """
    if not 1 <= options.n_best <= options.beam:
        raise ValueError(
            "n_best must be between 1 and beam: found "
            f"{options.n_best} of {options.beam}"
        )
    batch, beam = len(max_length), options.beam
    blank = jnp.full((batch, beam, length), options.pad, jnp.int32)
    none = jnp.full((batch, beam), _NEVER, jnp.float32)
    state = State(
        jnp.int32(0),
        blank[:, :1],
        jnp.zeros((batch, 1), jnp.float32),
        blank,
        none,
        ~where,
        min_length,
        max_length,
        cache,
    )
    start = jnp.full((batch, 1), options.bos, jnp.int32)

    def first(ids: Array, cache: Cache) -> tuple[Array, Cache]:
        logits, cache = tokens_to_logits(ids, cache)
        if options.first is not None:  # probability 1
            only = jnp.arange(logits.shape[-1]) == options.first
            logits = jnp.broadcast_to(jnp.where(only, 0.0, _NEVER), logits.shape)
        return logits, cache

    return _step(first, start, state, options)


def run(
    tokens_to_logits: TokensToLogits,
    state: State,
    options: SearchOptions,
    *,
    live: int | Int[Array, ""] = 0,
) -> State:
    """Run steps until at most ``live`` examples are unfinished or slots are full."""

    def unfinished(state: State) -> Array:
        left = jnp.sum(~state.done) > live
        return left & (state.step < state.tokens.shape[-1])

    def step(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(
            state.tokens, state.step - 1, axis=2, keepdims=False
        )
        return _step(tokens_to_logits, last, state, options)

    return jax.lax.while_loop(unfinished, step, state)


def best(tokens: Array, scores: Array, options: SearchOptions) -> Hypotheses:
    """Return the ``n_best`` of the finished hypotheses of a `State`."""
    n = options.n_best
    tokens, scores = tokens[:, :n], scores[:, :n]
    lengths = jnp.argmax(tokens == options.eos, axis=-1) + 1
    # A score of NaN counts: it shows a caller that the model's outputs are NaN.
    return Hypotheses(tokens, jnp.where(scores == _NEVER, 0, lengths), scores)


def _step(
    tokens_to_logits: TokensToLogits,
    last: Int[Array, "batch beam"],
    state: State,
    options: SearchOptions,
) -> State:
    logits, cache = tokens_to_logits(last, state.cache)
    scores, parents, ids, ending = _continuations(logits, state, options)
    at = state.step
    # Keep the best of the previously and newly finished hypotheses.
    written = _write(state.tokens, jnp.full_like(last, options.eos), at)
    final = ending / divisor(at + 1, options)
    ended_tokens = jnp.concatenate([state.ended_tokens, written], axis=1)
    ended_scores = jnp.concatenate([state.ended_scores, final], axis=1)
    ended_scores, kept = jax.lax.top_k(ended_scores, options.beam)
    ended_tokens = jnp.take_along_axis(ended_tokens, kept[..., None], axis=1)
    tokens = jnp.take_along_axis(state.tokens, parents[..., None], axis=1)
    done = state.done | (at >= state.max_length)
    if options.early_stop:
        done |= jnp.all(ended_scores > _NEVER, axis=1)
    # Log-probabilities never increase, so no future score exceeds this bound.
    longest = state.max_length + 1 if options.length_penalty >= 0 else at + 2
    bound = scores[:, 0] / divisor(longest, options)
    done |= bound <= ended_scores[:, options.n_best - 1]
    return state._replace(
        step=at + 1,
        tokens=_write(tokens, ids, at),
        scores=scores,
        ended_tokens=ended_tokens,
        ended_scores=ended_scores,
        done=done,
        cache=reorder(cache, parents),
    )


def _continuations(
    logits: Float[Array, "batch beam vocab"], state: State, options: SearchOptions
) -> tuple[Array, Array, Array, Array]:
    """Return scores, parents and ids of the next live beams, and EOS scores or -inf."""
    beam, at = options.beam, state.step
    logits = logits.astype(jnp.float32)
    log_norm = jax.nn.logsumexp(logits, axis=-1)
    if options.no_repeat:
        logits = forbid_repeats(logits, state.tokens, at, options.no_repeat)
    limit = (at >= state.max_length)[:, None]
    may_end = (at >= state.min_length)[:, None] | limit
    ending = state.scores + logits[..., options.eos] - log_norm
    if options.free_end:
        ending = jnp.where(limit, state.scores, ending)
    ending = jnp.where(may_end, ending, _NEVER)

    forbidden = {options.pad, options.bos, options.eos, *options.forbid}
    values, ids = top_k(logits, beam, tuple(sorted(forbidden)))
    totals = state.scores[..., None] + values - log_norm[..., None]
    totals = jnp.where(limit[..., None], _NEVER, totals)
    batch, parents, width = totals.shape
    scores, chosen = jax.lax.top_k(totals.reshape(batch, -1), beam)
    ids = jnp.take_along_axis(ids.reshape(batch, -1), chosen, axis=1)

    # Rank of each EOS among all continuations: the number that score higher.
    rank = jnp.sum(scores[:, None] > ending[..., None], axis=-1)
    higher = ending[:, None] > ending[..., None]
    lower = jnp.arange(parents)[None] < jnp.arange(parents)[:, None]
    higher |= (ending[:, None] == ending[..., None]) & lower[None]
    rank += jnp.sum(higher, axis=-1)
    ending = jnp.where((rank < beam) & ~state.done[:, None], ending, _NEVER)
    return scores, chosen // width, ids, ending


def _write(tokens: Array, ids: Array, at: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(tokens, ids[..., None], at, axis=2)
