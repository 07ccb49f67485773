"""Decoding cache of a model, and the operations that a search applies to it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Cache(NamedTuple):
    """Decoding state of a model, in a layout that a search can reorder and pad.

    Attributes:
      beams: pytree of arrays [batch, beam, .., time, features]. A search reorders the
        beam axis, and pads the time axis when it needs space for more steps.
      shared: pytree of arrays [batch, ..] that all beams of an example share, such as
        source keys and values. They are never copied per beam or reordered.
      filled: number of positions stored in ``beams``.
    """

    beams: Any
    shared: Any
    filled: Int[Array, ""]


def reorder(cache: Cache, parents: Int[Array, "batch beam"]) -> Cache:
    """Gather the cache of beams ``parents`` within each example.

    ``parents`` may list more beams than the cache has. A search uses this to widen
    from one beam after its first step.
    """

    def take(x: Array) -> Array:
        batch, beams = x.shape[:2]
        rows = parents + beams * jnp.arange(batch)[:, None]
        flat = x.reshape(batch * beams, -1)
        taken = jnp.take(flat, rows.reshape(-1), axis=0, mode="clip")
        return taken.reshape(*parents.shape, *x.shape[2:])

    return cache._replace(beams=jax.tree.map(take, cache.beams))


def grow(cache: Cache, length: int) -> Cache:
    """Pad the cache to ``length`` positions."""

    def pad(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[-2] = (0, length - x.shape[-2])
        return jnp.pad(x, widths)

    return cache._replace(beams=jax.tree.map(pad, cache.beams))


def take_rows(cache: Cache, rows: Int[Array, "rows"]) -> Cache:
    """Select the cache of the given examples."""
    beams, shared = jax.tree.map(
        lambda x: jnp.take(x, rows, axis=0, mode="clip"), (cache.beams, cache.shared)
    )
    return cache._replace(beams=beams, shared=shared)
