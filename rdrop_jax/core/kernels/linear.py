"""Chunked value and gradients of an objective of linear output layers.

Each chunk of positions takes three matrix products; nothing is recomputed. With several
devices, each processes chunks of its local positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Integer

from rdrop_jax.core.kernels.chunking import chunked, even_chunks, sizes
from rdrop_jax.core.kernels.partition import MeshSplit
from rdrop_jax.core.losses import as_factor
from rdrop_jax.core.metrics import Pair

# (logits [passes, positions, vocab] of each projection, labels, weights, scales,
# with_gradient) -> (values [positions], gradients in the shapes of the logits)
LogitsFunction = Callable[
    [list[Array], Array, Pair, Pair, bool], tuple[Pair, list[Array]]
]


class Projection(NamedTuple):
    """Hidden states and the output layer that reads them.

    Attributes:
      hidden: hidden states [passes, positions, width].
      kernel: kernel [width, vocab], or [vocab, width] if tied.
      bias: bias [vocab], or None.
    """

    hidden: Any
    kernel: Any
    bias: Any


class LinearOptions(NamedTuple):
    """Options of the chunked computation.

    Attributes:
      objective: function of the logits of all projections.
      tied: for each projection, whether the kernel is [vocab, width].
      chunk_size: positions per chunk and device.
      fixed: for each projection, whether it gets no gradient.
    """

    objective: LogitsFunction
    tied: tuple[bool, ...]
    chunk_size: int
    fixed: tuple[bool, ...]


def all_chunks(
    options: LinearOptions,
    split: MeshSplit | None,
    inputs: tuple[Projection, ...],
    labels: Integer[Array, " positions"],
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, Any]:
    """Compute the terms of ``hidden @ kernel + bias`` per position, and the gradients.

    This is a `rdrop_jax.core.kernels.fused.RowsFunction` once ``options`` and ``split``
    are bound. Kernel gradients are summed over devices.

    Args:
      options: options of the computation.
      split: mesh axes to shard over; None for one device.
      inputs: projections of the objective.
      labels: class ids.
      weights: weights of both terms [positions].
      scales: scalar factors of the two weighted sums.
      with_gradient: whether to compute the gradients.

    Returns:
      The two terms [positions], and the gradients in the structure of the inputs, None
      for a fixed projection; or None.
    """
    if split is None:
        return _local_chunks(options, inputs, labels, weights, scales, with_gradient)
    rows: Any = PartitionSpec(split.rows)
    whole: Any = PartitionSpec()
    tensor = PartitionSpec(split.tensor)
    by_projection = tuple(
        Projection(
            PartitionSpec(None, split.rows),
            tensor if tied else PartitionSpec(None, split.tensor),
            tensor,
        )
        for tied in options.tied
    )
    out = tuple(
        whole if fixed else projection
        for fixed, projection in zip(options.fixed, by_projection, strict=True)
    )

    def summed(gradients: Projection | None) -> Projection | None:
        if gradients is None:
            return None
        d_hidden, *shared = gradients
        if split.tensor:
            d_hidden = jax.lax.psum(d_hidden, split.tensor)
        return Projection(d_hidden, *jax.lax.psum(shared, split.rows))

    def local(inputs: Any, labels: Array, weights: Pair, scales: Pair) -> Any:
        values, gradients = _local_chunks(
            options, inputs, labels, weights, scales, with_gradient
        )
        return values, tuple(map(summed, gradients)) if with_gradient else None

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(by_projection, rows, rows, whole),
        out_specs=(rows, out if with_gradient else whole),
        check_vma=False,
    )(inputs, labels, weights, scales)


def _local_chunks(
    options: LinearOptions,
    inputs: tuple[Projection, ...],
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, Any]:
    """Compute the terms per position and the gradients on one device."""
    positions = len(labels)
    count, size = even_chunks(positions, options.chunk_size)
    pad = ((0, 0), (0, count * size - positions), (0, 0))
    padded = [x._replace(hidden=jnp.pad(x.hidden, pad)) for x in inputs]
    layers = [*zip(padded, options.tied, options.fixed, strict=True)]
    per_row = jax.tree.map(lambda x: chunked(x, count, size), (labels, weights))
    dtype = jnp.promote_types(inputs[0].hidden.dtype, jnp.float32)

    def body(i: Array, carry: tuple) -> tuple:
        values, totals = carry
        labels, weights = jax.tree.map(lambda x: x[i], per_row)
        keep, start = weights.kl != 0, i * size
        hs = [_rows(x, start, keep) for x, _, _ in layers]
        zs = [
            _logits(x, tied, h, dtype).reshape(len(x.hidden), size, _vocab(x, tied))
            for (x, tied, _), h in zip(layers, hs, strict=True)
        ]
        new, gs = options.objective(zs, labels, weights, scales, with_gradient)
        values = jax.tree.map(lambda old, new: old.at[i].set(new), values, new)
        if not with_gradient:
            return values, None
        return values, tuple(
            total if fixed else _add(total, x, tied, start, h, g, dtype)
            for total, (x, tied, fixed), h, g in zip(
                totals, layers, hs, gs, strict=True
            )
        )

    # Derived from the inputs: within `jax.shard_map` the carry must have their type.
    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype), per_row[1])
    totals: Any = None
    if with_gradient:
        totals = tuple(None if fixed else _zeros(x, dtype) for x, _, fixed in layers)
    values, totals = jax.lax.fori_loop(0, count, body, (zeros, totals))
    if with_gradient:
        totals = tuple(
            None if total is None else _as_inputs(total, x, positions)
            for total, x in zip(totals, inputs, strict=True)
        )
    return Pair(*(x.reshape(-1)[:positions] for x in values)), totals


def _vocab(x: Projection, tied: bool) -> int:
    return int(x.kernel.shape[0 if tied else 1])


def _product(a: Array, b: Array, axes: tuple[int, int], dtype: Any) -> Array:
    """Contract one axis of each matrix, with sums in ``dtype``."""
    contract = (((axes[0],), (axes[1],)), ((), ()))
    return jax.lax.dot_general(a, b, contract, preferred_element_type=dtype)


def _rows(x: Projection, start: Array, keep: Array) -> Array:
    """Return the hidden states of one chunk [passes * size, width]."""
    passes, _, width = x.hidden.shape
    h = jax.lax.dynamic_slice(x.hidden, (0, start, 0), (passes, len(keep), width))
    # Clear here too: NaN times a gradient of 0 would reach the kernel gradient.
    h = jnp.where(keep[None, :, None], h, jnp.zeros((), h.dtype))
    return h.reshape(-1, width)


def _logits(x: Projection, tied: bool, h: Array, dtype: Any) -> Array:
    z = _product(h, x.kernel, (1, 1 if tied else 0), dtype)
    return z if x.bias is None else z + x.bias[None].astype(dtype)


def _zeros(x: Projection, dtype: Any) -> Projection:
    wide = jax.tree.map(lambda each: jnp.zeros_like(each, dtype), x[1:])
    return Projection(jnp.zeros_like(x.hidden), *wide)


def _add(
    total: Projection,
    x: Projection,
    tied: bool,
    start: Array,
    h: Array,
    g: Array,
    dtype: Any,
) -> Projection:
    """Add the gradients of the chunk with hidden states h and logit gradients g."""
    passes, size = g.shape[:2]
    g = g.reshape(len(h), g.shape[-1])
    bias = None if total.bias is None else total.bias + jnp.sum(g, axis=0)
    g = as_factor(g, x.kernel)
    new = _product(g, x.kernel, (1, 0 if tied else 1), dtype)
    new = new.astype(x.hidden.dtype).reshape(passes, size, h.shape[-1])
    hidden = jax.lax.dynamic_update_slice(total.hidden, new, (0, start, 0))
    return Projection(hidden, _add_product(total.kernel, h, g, tied, dtype), bias)


def _as_inputs(total: Projection, x: Projection, positions: int) -> Projection:
    wide = jax.tree.map(lambda g, each: g.astype(each.dtype), total[1:], x[1:])
    return Projection(total.hidden[:, :positions], *wide)


def _add_product(total: Array, h: Array, g: Array, tied: bool, dtype: Any) -> Array:
    """Return ``total + h^T g``, in blocks of tokens if the vocabulary is large."""

    def of(words: Array) -> Array:
        factors = (words, h) if tied else (h, words)
        return _product(*factors, (0, 0), dtype)

    vocab = g.shape[1]
    if vocab <= sizes().kernel_whole:
        return total + of(g)
    axis = 0 if tied else 1

    def add(total: Array, start: Array | int, size: int) -> Array:
        words = jax.lax.dynamic_slice_in_dim(g, start, size, 1)
        old = jax.lax.dynamic_slice_in_dim(total, start, size, axis)
        return jax.lax.dynamic_update_slice_in_dim(total, old + of(words), start, axis)

    size = sizes().kernel_block
    blocks, rest = divmod(vocab, size)
    total = jax.lax.fori_loop(
        0, blocks, lambda i, total: add(total, i * size, size), total
    )
    return add(total, blocks * size, rest) if rest else total
