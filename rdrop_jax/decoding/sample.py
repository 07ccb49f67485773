"""Continuing texts at random, with a cache and static shapes, over any model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdrop_jax.decoding.cache import Cache

# ``(ids [rows, 1], cache) -> (logits [rows, 1, vocab], cache)``
Step = Callable[[Array, Cache], tuple[Array, Cache]]


def nucleus(
    logits: Float[Array, "rows vocab"], top_p: float
) -> Float[Array, "rows vocab"]:
    """-inf for all but the fewest words that have ``top_p`` of the probability.

    Holtzman et al., 2020 (arXiv 1904.09751). The most probable word stays.

    Args:
      logits: unnormalised.
      top_p: in (0, 1]; 1 keeps all.

    Returns:
      Logits.

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
    """Continues every row up to the end of ``tokens``; to be called under jit.

    What a row becomes depends on its own prompt and key alone.

    Args:
      step: of the model.
      cache: empty, with room for ``time`` positions.
      tokens: prompts of at least one token, anything after them.
      lengths: of the prompts.
      keys: a PRNG key per row.
      temperature: logits are divided by it; 0 takes the most probable word.
      top_p: as `nucleus`.
      forbid: ids that are never chosen.

    Returns:
      The rows, with what follows the prompts.
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
        given = jax.lax.dynamic_slice_in_dim(tokens, at + 1, 1, axis=1)
        known = (at + 1 < lengths)[:, None]
        new = jnp.where(known, given, chosen[:, None].astype(tokens.dtype))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, new, at + 1, axis=1)
        return tokens, cache

    last = tokens.shape[1] - 1
    return jax.lax.fori_loop(0, last, body, (tokens, cache))[0]
