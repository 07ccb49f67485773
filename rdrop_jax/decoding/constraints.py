"""Constraints on hypotheses, as jit-compatible functions of their tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def forbid_repeats(
    logits: Float[Array, "batch beam vocab"],
    tokens: Int[Array, "batch beam time"],
    step: Int[Array, ""],
    size: int,
) -> Float[Array, "batch beam vocab"]:
    """Mask tokens that would repeat an n-gram of the hypothesis.

    Args:
      logits: logits or log-probabilities; the result is not renormalised.
      tokens: tokens of the hypotheses. The first ``step`` are those chosen so far,
        excluding the start token.
      step: number of tokens chosen so far.
      size: length n of the n-grams that must not repeat.

    Returns:
      ``logits`` with -inf for tokens that would repeat an n-gram.
    """
    time = tokens.shape[-1]
    count = time - size + 1  # windows
    if count < 1:
        return logits
    places = jnp.arange(count)
    # A window is complete when its last token precedes the step.
    same = jnp.broadcast_to(places + size - 1 < step, (*tokens.shape[:2], count))
    for offset in range(size - 1):
        # With fewer than size - 1 tokens the index is clipped: no window is complete.
        at = jnp.clip(step - size + 1 + offset, 0, time - 1)
        last = jnp.take(tokens, at, axis=-1)[..., None]
        same &= tokens[..., offset : offset + count] == last
    batch, beam = tokens.shape[:2]
    # Scatter into the affected entries only; no mask over the vocabulary is built.
    return logits.at[
        jnp.arange(batch)[:, None, None],
        jnp.arange(beam)[None, :, None],
        tokens[..., size - 1 :],
    ].min(jnp.where(same, -jnp.inf, jnp.inf))
