"""Dropout from a counter-based hash, at little more than the cost of a copy.

The mask entry at position (i, j, ..) is an integer hash of the key's words and of i, j,
.., chained axis by axis. It depends only on key, shape and position, so it is the same
under jit on one device and on eight. The backward pass recomputes it, and no flat index
can overflow 32 bits. Under `jax.shard_map`, or `jax.vmap` over examples, positions
start at 0 in each shard or row: use a separate key for each, as with `jax.random`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from rdrop_jax.core.options import MASKS
from rdrop_jax.core.passes import Key


def _mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Spread every bit of a 32-bit integer to the bits above it.

    Constants are those of lowbias32 from Chris Wellons' hash-prospector. Its last shift
    is omitted: it would change only the low half, the next call starts with it, and
    masks compare from the top bit.
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)


def hash_bits(key: Key, shape: Sequence[int]) -> UInt32[Array, "..."]:
    """Return 32 hash bits per position, a pure function of key and position.

    The state has two 32-bit words, and every key word and axis mixes both. Two rows,
    sites or passes therefore share a run of mask entries only if all 64 bits are equal.

    Args:
      key: one PRNG key, typed or raw, of any implementation.
      shape: shape of the result, each axis shorter than 2**32.

    Returns:
      Uniform unsigned integers; the high bits have better quality.

    Raises:
      ValueError: not exactly one key.

    Example:
      >>> import jax
      >>> hash_bits(jax.random.key(0), (4, 8)).shape
      (4, 8)
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"key must be one PRNG key: found shape {key.shape}")
    words = jax.random.key_data(key) if typed else key
    a, b = jnp.uint32(0x9E3779B9), jnp.uint32(words.size)
    for word in words.astype(jnp.uint32):
        a = _mix(a ^ word)
        b = _mix(b ^ a)
    for axis in range(len(shape)):
        lead = (1,) * axis
        at = jax.lax.broadcasted_iota(jnp.uint32, (*lead, shape[axis]), axis)
        a = _mix(jnp.expand_dims(a, axis) + at)
        b = _mix(jnp.expand_dims(b, axis) ^ a)
    return b


def check_rate(rate: float) -> None:
    """Raise ValueError if the rate is outside [0, 1)."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate must be in [0, 1): found {rate}")


def dropout_mask(
    key: Key, rate: float, shape: Sequence[int], *, masks: str = "hash"
) -> Bool[Array, "..."]:
    """Draw a dropout mask: True with probability ``1 - rate``, exact to 32 bits.

    Args:
      key: one PRNG key.
      rate: probability that an entry is dropped, in [0, 1).
      shape: shape of the mask.
      masks: "hash", or "bernoulli" for `jax.random.bernoulli`, which is much slower.

    Returns:
      A boolean mask (True keeps).

    Raises:
      ValueError: a rate out of range, unknown ``masks``, not exactly one key.

    Example:
      >>> import jax
      >>> kept = dropout_mask(jax.random.key(0), 0.25, (1000,))
      >>> 0.7 < float(kept.mean()) < 0.8
      True
    """
    check_rate(rate)
    if masks == "bernoulli":
        return jax.random.bernoulli(key, 1.0 - rate, shape)
    if masks != "hash":
        raise ValueError(f"masks must be one of {MASKS}: found {masks!r}")
    last_kept = max(round((1.0 - rate) * 2**32), 1) - 1
    return hash_bits(key, shape) <= jnp.uint32(last_kept)


def dropout(
    key: Key, x: Float[Array, "..."], rate: float, *, masks: str = "hash"
) -> Float[Array, "..."]:
    """Inverted dropout: 0 with probability ``rate``, else ``x / (1 - rate)``.

    Every entry is dropped independently; no axis shares a mask. The backward pass
    recomputes the mask instead of storing it.

    Args:
      key: one PRNG key; use a different key for every site, pass and step.
      x: any floating-point array.
      rate: dropout rate in [0, 1); 0 returns x.
      masks: see `dropout_mask`.

    Returns:
      An array like x.

    Raises:
      ValueError: as `dropout_mask`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sorted(set(dropout(jax.random.key(0), jnp.ones(99), 0.5).tolist()))
      [0.0, 2.0]
    """
    if rate == 0.0:
        return x

    # Linear in x: its transpose needs only the key.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def masked(key: Key, x: Array) -> Array:
        kept = dropout_mask(key, rate, x.shape, masks=masks)
        return jnp.where(kept, x * (1.0 / (1.0 - float(rate))), jnp.zeros((), x.dtype))

    return masked(key, x)


def layer_drop(
    key: Key,
    x: Float[Array, "batch ..."],
    new_x: Float[Array, "batch ..."],
    rate: float,
    *,
    masks: str = "hash",
) -> Float[Array, "batch ..."]:
    """Per-example LayerDrop: skip a layer with probability ``rate``.

    Nothing is rescaled. Source: Fan et al., 2020 (arXiv 1909.11556), who draw once per
    batch. Drawing per example makes two passes differ independently for each row.

    Args:
      key: one PRNG key.
      x: input of the layer.
      new_x: output of the layer, residual connection included.
      rate: probability in [0, 1) that an example skips the layer.
      masks: see `dropout_mask`.

    Returns:
      Rows of ``new_x``, or of ``x`` where the layer is skipped.

    Raises:
      ValueError: as `dropout_mask`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rows = layer_drop(
      ...     jax.random.key(0), jnp.zeros((99, 2)), jnp.ones((99, 2)), 0.5)
      >>> bool((rows[:, 0] == rows[:, 1]).all())
      True
    """
    if rate == 0.0:
        return new_x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    return jnp.where(dropout_mask(key, rate, shape, masks=masks), new_x, x)
