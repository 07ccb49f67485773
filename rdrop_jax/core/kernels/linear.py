"""Chunked value and gradients of the objective of a linear output layer.

Each chunk of positions takes three matrix products; nothing is recomputed. With several
devices, each processes chunks of its local positions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Integer

from rdrop_jax.core.kernels.chunking import chunked, even_chunks, sizes
from rdrop_jax.core.kernels.class_ids import all_rows
from rdrop_jax.core.kernels.partition import MeshSplit
from rdrop_jax.core.kernels.softmax import SoftmaxOptions
from rdrop_jax.core.losses import as_factor
from rdrop_jax.core.metrics import Pair


class LinearOptions(NamedTuple):
    """Options of the chunked computation.

    Attributes:
      softmax: options of the objective.
      tied: whether the kernel is [vocab, width].
      chunk_size: positions per chunk and device.
    """

    softmax: SoftmaxOptions
    tied: bool
    chunk_size: int


# Hidden states [1 or 2, positions, width], kernel [width, vocab], or [vocab, width] if
# tied, and bias [vocab] or None.
Inputs = tuple[Array, Array, Array | None]


def all_chunks(
    options: LinearOptions,
    split: MeshSplit | None,
    inputs: Inputs,
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
      inputs: see `Inputs`.
      labels: class ids.
      weights: weights of both terms [positions].
      scales: scalar factors of the two weighted sums.
      with_gradient: whether to compute the gradients.

    Returns:
      The two terms [positions], and the gradients in the structure of the inputs, or
      None.
    """
    if split is None:
        return _local_chunks(options, inputs, labels, weights, scales, with_gradient)
    rows: Any = PartitionSpec(split.rows)
    whole: Any = PartitionSpec()
    tensor = PartitionSpec(split.tensor)
    across = tensor if options.tied else PartitionSpec(None, split.tensor)
    by_input = (PartitionSpec(None, split.rows), across, tensor)

    def local(inputs: Inputs, labels: Array, weights: Pair, scales: Pair) -> Any:
        values, gradients = _local_chunks(
            options, inputs, labels, weights, scales, with_gradient
        )
        if not with_gradient:
            return values, None
        d_hidden, *shared = gradients
        if options.softmax.axis:
            d_hidden = jax.lax.psum(d_hidden, options.softmax.axis)
        return values, (d_hidden, *jax.lax.psum(shared, split.rows))

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(by_input, rows, rows, whole),
        out_specs=(rows, by_input if with_gradient else whole),
        check_vma=False,
    )(inputs, labels, weights, scales)


def _local_chunks(
    options: LinearOptions,
    inputs: Inputs,
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, Any]:
    """Compute the terms per position and the gradients on one device."""
    hidden, kernel, bias = inputs
    passes, positions, width = hidden.shape
    count, size = even_chunks(positions, options.chunk_size)
    hidden = jnp.pad(hidden, ((0, 0), (0, count * size - positions), (0, 0)))
    per_row = jax.tree.map(lambda x: chunked(x, count, size), (labels, weights))
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    product = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    inner, outer = (1, 0) if options.tied else (0, 1)  # axes of width and vocabulary

    def chunk(i: Array) -> tuple[Pair, Array, Array]:
        labels, weights = jax.tree.map(lambda x: x[i], per_row)
        h = jax.lax.dynamic_slice(hidden, (0, i * size, 0), (passes, size, width))
        # Clear here too: NaN times a gradient of 0 would reach the kernel gradient.
        h = jnp.where((weights.kl != 0)[None, :, None], h, jnp.zeros((), h.dtype))
        h = h.reshape(-1, width)
        z = product(h, kernel, (((1,), (inner,)), ((), ())))
        if bias is not None:
            z += bias[None].astype(dtype)
        values, g = all_rows(
            z.reshape(passes, size, z.shape[-1]),
            labels,
            weights,
            scales,
            options.softmax,
            with_gradient=with_gradient,
            local=True,
        )
        return values, h, g

    def body(i: Array, carry: tuple) -> tuple:
        values, gradients = carry
        new_values, h, g = chunk(i)
        values = jax.tree.map(lambda old, new: old.at[i].set(new), values, new_values)
        if not with_gradient:
            return values, None
        d_hidden, d_kernel, d_bias = gradients
        g = g.reshape(len(h), g.shape[-1])
        d_bias = None if d_bias is None else d_bias + jnp.sum(g, axis=0)
        g = as_factor(g, kernel)
        new = product(g, kernel, (((1,), (outer,)), ((), ())))
        new = new.astype(hidden.dtype).reshape(passes, size, width)
        d_hidden = jax.lax.dynamic_update_slice(d_hidden, new, (0, i * size, 0))
        d_kernel = _add_product(d_kernel, h, g, options.tied, product)
        return values, (d_hidden, d_kernel, d_bias)

    # Derived from the inputs: within `jax.shard_map` the carry must have their type.
    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype), per_row[1])
    gradients = None
    if with_gradient:
        wide = jax.tree.map(lambda x: jnp.zeros_like(x, dtype), (kernel, bias))
        gradients = (jnp.zeros_like(hidden), *wide)
    values, gradients = jax.lax.fori_loop(0, count, body, (zeros, gradients))
    if gradients is not None:
        d_hidden, *wide = gradients
        wide = jax.tree.map(lambda g, x: g.astype(x.dtype), wide, [kernel, bias])
        gradients = (d_hidden[:, :positions], *wide)
    return Pair(*(x.reshape(-1)[:positions] for x in values)), gradients


def _add_product(total: Array, h: Array, g: Array, tied: bool, product: Any) -> Array:
    """Return ``total + h^T g``, in blocks of tokens if the vocabulary is large."""
    contract = (((0,), (0,)), ((), ()))

    def of(words: Array) -> Array:
        return product(words, h, contract) if tied else product(h, words, contract)

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
