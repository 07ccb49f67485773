"""Top-k of long rows."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCK = 64


def top_k(
    x: Float[Array, "... vocab"], k: int, without: tuple[int, ...] = ()
) -> tuple[Float[Array, "... k"], Int[Array, "... k"]]:
    """Compute `jax.lax.top_k` over the last axis exactly, and faster for long rows.

    Only the k blocks with the largest maxima can contain one of the k largest entries.
    Ties go to the lower index, so among equal maxima the first blocks are taken.

    Args:
      x: array whose last axis is searched.
      k: number of entries.
      without: indices to exclude.

    Returns:
      Values in descending order, and indices. If fewer than k entries remain, the
      missing ones are -inf with an arbitrary index.
    """
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    if size < 32 * _BLOCK or k > 16:
        hidden = jnp.zeros(size, bool).at[jnp.asarray(without, int)].set(True)
        rows = jnp.where(hidden[None], -jnp.inf, rows)
        extra = max(k - size, 0)
        rows = jnp.pad(rows, ((0, 0), (0, extra)), constant_values=-jnp.inf)
        values, ids = jax.lax.top_k(rows, k)
        return _shaped(x, values), _shaped(x, ids % size)

    blocks = -(-size // _BLOCK)
    fill = ((0, 0), (0, blocks * _BLOCK - size))
    padded = jnp.pad(rows, fill, constant_values=-jnp.inf)
    most = jnp.max(padded.reshape(-1, blocks, _BLOCK), axis=-1)
    # Each excluded index may be the maximum of one block.
    _, block = jax.lax.top_k(most, min(k + len(without), blocks))
    first = jnp.sort(block, axis=-1) * _BLOCK
    # The last block starts early so that it does not run past the end.
    begin = jnp.minimum(first, size - _BLOCK)
    near = jax.vmap(lambda row, at: jax.vmap(lambda i: _block(row, i))(at))(rows, begin)
    ids = begin[..., None] + jnp.arange(_BLOCK)[None, None]
    hidden = ids < first[..., None]
    for index in without:
        hidden |= ids == index
    near = jnp.where(hidden, -jnp.inf, near).reshape(len(rows), -1)
    values, chosen = jax.lax.top_k(near, k)
    ids = jnp.take_along_axis(ids.reshape(near.shape), chosen, axis=1)
    return _shaped(x, values), _shaped(x, ids)


def _block(row: Array, at: Array) -> Array:
    return jax.lax.dynamic_slice(row, (at,), (_BLOCK,))


def _shaped(x: Array, rows: Array) -> Array:
    return rows.reshape(*x.shape[:-1], -1)
