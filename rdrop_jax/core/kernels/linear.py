"""Chunked value and gradients of an objective of linear output layers.

Each chunk of positions takes three matrix products; nothing is recomputed. With several
devices, each processes chunks of its local positions.
"""

import functools
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

# (logits [passes, positions, vocab] of each side, labels, weights, scales,
# with_gradient) -> (values [positions], gradients in the shapes of the logits)
LogitsFunction = Callable[
    [list[Array], Array, Pair, Pair, bool], tuple[Pair, list[Array]]
]


class Side(NamedTuple):
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
      objective: function of the logits of all sides.
      tied: for each side, whether the kernel is [vocab, width].
      chunk_size: positions per chunk and device.
      fixed: for each side, whether it gets no gradient; none by default.
    """

    objective: LogitsFunction
    tied: tuple[bool, ...]
    chunk_size: int
    fixed: tuple[bool, ...] = (False, False)


def all_chunks(
    options: LinearOptions,
    split: MeshSplit | None,
    inputs: tuple[Side, ...],
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
      inputs: sides of the objective.
      labels: class ids.
      weights: weights of both terms [positions].
      scales: scalar factors of the two weighted sums.
      with_gradient: whether to compute the gradients.

    Returns:
      The two terms [positions], and the gradients in the structure of the inputs, None
      for a fixed side; or None.
    """
    if split is None:
        return _local_chunks(options, inputs, labels, weights, scales, with_gradient)
    rows: Any = PartitionSpec(split.rows)
    whole: Any = PartitionSpec()
    tensor = PartitionSpec(split.tensor)
    by_side = tuple(
        Side(
            PartitionSpec(None, split.rows),
            tensor if tied else PartitionSpec(None, split.tensor),
            tensor,
        )
        for tied, _ in zip(options.tied, inputs, strict=False)
    )
    out = tuple(
        whole if fixed else side
        for fixed, side in zip(options.fixed, by_side, strict=False)
    )

    def summed(gradients: Side | None) -> Side | None:
        if gradients is None:
            return None
        d_hidden, *shared = gradients
        if split.tensor:
            d_hidden = jax.lax.psum(d_hidden, split.tensor)
        return Side(d_hidden, *jax.lax.psum(shared, split.rows))

    def local(inputs: Any, labels: Array, weights: Pair, scales: Pair) -> Any:
        values, gradients = _local_chunks(
            options, inputs, labels, weights, scales, with_gradient
        )
        return values, tuple(map(summed, gradients)) if with_gradient else None

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(by_side, rows, rows, whole),
        out_specs=(rows, out if with_gradient else whole),
        check_vma=False,
    )(inputs, labels, weights, scales)


def _local_chunks(
    options: LinearOptions,
    inputs: tuple[Side, ...],
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, Any]:
    """Compute the terms per position and the gradients on one device."""
    positions = len(labels)
    count, size = even_chunks(positions, options.chunk_size)
    pad = ((0, 0), (0, count * size - positions), (0, 0))
    sides = [side._replace(hidden=jnp.pad(side.hidden, pad)) for side in inputs]
    per_row = jax.tree.map(lambda x: chunked(x, count, size), (labels, weights))
    dtype = jnp.promote_types(inputs[0].hidden.dtype, jnp.float32)
    product = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)

    def logits(side: Side, tied: bool, i: Array, keep: Array) -> tuple[Array, Array]:
        passes, _, width = side.hidden.shape
        h = jax.lax.dynamic_slice(side.hidden, (0, i * size, 0), (passes, size, width))
        # Clear here too: NaN times a gradient of 0 would reach the kernel gradient.
        h = jnp.where(keep[None, :, None], h, jnp.zeros((), h.dtype))
        h = h.reshape(-1, width)
        z = product(h, side.kernel, (((1,), (1 if tied else 0,)), ((), ())))
        if side.bias is not None:
            z += side.bias[None].astype(dtype)
        return h, z.reshape(passes, size, z.shape[-1])

    def added(
        side: Side, tied: bool, total: Side, i: Array, h: Array, g: Array
    ) -> Side:
        """Add the gradients of one chunk."""
        g = g.reshape(len(h), g.shape[-1])
        bias = None if total.bias is None else total.bias + jnp.sum(g, axis=0)
        g = as_factor(g, side.kernel)
        new = product(g, side.kernel, (((1,), (0 if tied else 1,)), ((), ())))
        new = new.astype(side.hidden.dtype).reshape(-1, size, new.shape[-1])
        hidden = jax.lax.dynamic_update_slice(total.hidden, new, (0, i * size, 0))
        return Side(hidden, _add_product(total.kernel, h, g, tied, product), bias)

    def body(i: Array, carry: tuple) -> tuple:
        values, totals = carry
        labels, weights = jax.tree.map(lambda x: x[i], per_row)
        tied = options.tied[: len(sides)]
        hs, zs = zip(
            *(
                logits(side, t, i, weights.kl != 0)
                for side, t in zip(sides, tied, strict=True)
            ),
            strict=True,
        )
        new, gs = options.objective([*zs], labels, weights, scales, with_gradient)
        values = jax.tree.map(lambda old, new: old.at[i].set(new), values, new)
        if not with_gradient:
            return values, None
        parts = zip(sides, tied, totals, hs, gs, strict=True)
        return values, tuple(
            None if total is None else added(side, t, total, i, h, g)
            for side, t, total, h, g in parts
        )

    # Derived from the inputs: within `jax.shard_map` the carry must have their type.
    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, dtype), per_row[1])
    totals: Any = None
    if with_gradient:
        totals = tuple(
            None
            if fixed
            else Side(
                jnp.zeros_like(side.hidden),
                *jax.tree.map(lambda x: jnp.zeros_like(x, dtype), side[1:]),
            )
            for side, fixed in zip(sides, options.fixed, strict=False)
        )
    values, totals = jax.lax.fori_loop(0, count, body, (zeros, totals))
    if with_gradient:
        totals = tuple(
            None if total is None else _as_inputs(total, side, positions)
            for total, side in zip(totals, inputs, strict=True)
        )
    return Pair(*(x.reshape(-1)[:positions] for x in values)), totals


def _as_inputs(total: Side, side: Side, positions: int) -> Side:
    wide = jax.tree.map(lambda g, x: g.astype(x.dtype), total[1:], side[1:])
    return Side(total.hidden[:, :positions], *wide)


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
