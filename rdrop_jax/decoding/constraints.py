"""What a hypothesis may not be, as functions of its tokens; under jit."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def forbid_repeats(
    logits: Float[Array, "batch beam vocab"],
    tokens: Int[Array, "batch beam time"],
    step: Int[Array, ""],
    size: int,
) -> Float[Array, "batch beam vocab"]:
    """Logits in which no token ends a sequence that the hypothesis has already.

    Args:
      logits: or log-probabilities, which are not normalised again.
      tokens: of the hypotheses; the first ``step`` are those chosen so far. What a
        decoder starts from is not among them.
      step: how many.
      size: tokens of a sequence that may not stand twice.

    Returns:
      The same, -inf where a token would repeat one.
    """
    time = tokens.shape[-1]
    count = time - size + 1  # windows
    if count < 1:
        return logits
    places = jnp.arange(count)
    # A window is over when its last token stands before the step.
    same = jnp.broadcast_to(places + size - 1 < step, (*tokens.shape[:2], count))
    for offset in range(size - 1):
        # Before the step there may be fewer tokens: no window is over then.
        at = jnp.clip(step - size + 1 + offset, 0, time - 1)
        last = jnp.take(tokens, at, axis=-1)[..., None]
        same &= tokens[..., offset : offset + count] == last
    batch, beam = tokens.shape[:2]
    # Only what is written is touched: no mask of all words is made.
    return logits.at[
        jnp.arange(batch)[:, None, None],
        jnp.arange(beam)[None, :, None],
        tokens[..., size - 1 :],
    ].min(jnp.where(same, -jnp.inf, jnp.inf))


def begin_with(
    token: int, tokens_to_logits: Callable[..., tuple[Array, Any]]
) -> Callable[..., tuple[Array, Any]]:
    """A first step that can choose one token alone, with probability 1."""

    def forced(ids: Array, cache: Any) -> tuple[Array, Any]:
        logits, cache = tokens_to_logits(ids, cache)
        only = jnp.arange(logits.shape[-1]) == token
        return jnp.broadcast_to(jnp.where(only, 0.0, -jnp.inf), logits.shape), cache

    return forced
