"""Sampling of continuations with a cache and static shapes, for any model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdrop_jax.models.cache import Cache

# ``(ids [rows, 1], cache) -> (logits [rows, 1, vocab], cache)``
Step = Callable[[Array, Cache], tuple[Array, Cache]]


def nucleus(
    logits: Float[Array, "rows vocab"], top_p: float
) -> Float[Array, "rows vocab"]:
    """Set logits outside the nucleus to -inf.

    The nucleus is the smallest set of tokens with probability at least ``top_p``; it
    always has the most probable token. Holtzman et al., 2020 (arXiv 1904.09751).

    Args:
      logits: unnormalised logits.
      top_p: probability mass in (0, 1]; 1 keeps all tokens.

    Returns:
      Masked logits.

    Example:
      >>> nucleus(jnp.log(jnp.array([[0.6, 0.3, 0.1]])), 0.7)[0].tolist()[2]
      -inf
    """
    if top_p >= 1:
        return logits
    order = jnp.argsort(-logits, axis=-1)
    probs = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    rank = jnp.argsort(order, axis=-1)
    kept = jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def sample(
    step: Step,
    cache: Cache,
    tokens: Int[Array, "rows time"],
    lengths: Int[Array, " rows"],
    keys: Array,
    *,
    temperature: float,
    top_p: float,
    forbid: tuple[int, ...] = (),
) -> Int[Array, "rows time"]:
    """Sample a continuation of every row up to the end of ``tokens``, under jit.

    The result of a row depends only on its prompt and key.

    Args:
      step: decoding step of the model.
      cache: empty cache, allocated for ``time`` positions.
      tokens: prompts of at least one token; entries after the prompt are ignored.
      lengths: lengths of the prompts.
      keys: one PRNG key per row.
      temperature: divisor of the logits; 0 picks the most probable token.
      top_p: probability mass of the `nucleus`.
      forbid: ids that are never chosen.

    Returns:
      Prompts with their continuations; -1 where the logits are NaN.
    """

    def body(at: Array, carry: tuple[Array, Cache]) -> tuple[Array, Cache]:
        tokens, cache = carry
        here = jax.lax.dynamic_slice_in_dim(tokens, at, 1, axis=1)
        logits, cache = step(here, cache)
        logits = logits[:, 0].astype(jnp.float32)
        if forbid:
            logits = logits.at[:, jnp.asarray(forbid)].set(-jnp.inf)
        if temperature == 0:
            chosen = jnp.argmax(logits, axis=-1)
        else:
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, at)
            draw = jax.vmap(jax.random.categorical)
            chosen = draw(folded, nucleus(logits / temperature, top_p))
        chosen = jnp.where(jnp.isnan(logits).any(axis=-1), -1, chosen)
        given = jax.lax.dynamic_slice_in_dim(tokens, at + 1, 1, axis=1)
        known = (at + 1 < lengths)[:, None]
        new = jnp.where(known, given, chosen[:, None].astype(tokens.dtype))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new, at + 1, axis=1)
        return tokens, cache

    last = tokens.shape[1] - 1
    return jax.lax.fori_loop(0, last, body, (tokens, cache))[0]
