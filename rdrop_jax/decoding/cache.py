"""What a model keeps between the steps of a search, and what a search does with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Cache(NamedTuple):
    """The state of a model in a search, laid out so that a search can move it.

    Attributes:
      beams: pytree of arrays [batch, beam, .., time, features]: a search reorders their
        beams, and pads their last axis but one where it needs room for more steps.
      shared: pytree of arrays [batch, ..] that all beams of an example share, as the
        keys and values of its source: never copied per beam, never reordered.
      filled: how many positions ``beams`` holds.
    """

    beams: Any
    shared: Any
    filled: Int[Array, ""]


def reorder(cache: Cache, parents: Int[Array, "batch beam"]) -> Cache:
    """Beams that go on from the beams ``parents`` of their example.

    A gather of whole beams; ``parents`` may be more than the cache has beams, which is
    how a search widens after its first step.
    """

    def take(x: Array) -> Array:
        batch, beams = x.shape[:2]
        rows = parents + beams * jnp.arange(batch)[:, None]
        flat = x.reshape(batch * beams, -1)
        taken = jnp.take(flat, rows.reshape(-1), axis=0, mode="clip")
        return taken.reshape(*parents.shape, *x.shape[2:])

    return cache._replace(beams=jax.tree.map(take, cache.beams))


def grow(cache: Cache, length: int) -> Cache:
    """Room for ``length`` positions."""

    def pad(x: Array) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[-2] = (0, length - x.shape[-2])
        return jnp.pad(x, widths)

    return cache._replace(beams=jax.tree.map(pad, cache.beams))


def take_rows(cache: Cache, rows: Int[Array, "rows"]) -> Cache:
    """The cache of these examples."""
    beams, shared = jax.tree.map(
        lambda x: jnp.take(x, rows, axis=0, mode="clip"), (cache.beams, cache.shared)
    )
    return cache._replace(beams=beams, shared=shared)
