"""Chunked value and gradients of the objective of a linear output layer.

Each chunk of positions takes three matrix products; nothing is recomputed. With several
devices, each processes chunks of its local positions.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.kernels.class_ids import Weights, all_rows, weighted_sums
from rdrop_jax.core.kernels.partition import Split
from rdrop_jax.core.kernels.softmax import Form
from rdrop_jax.core.losses import as_factor

# Above this vocabulary size, the kernel gradient is accumulated in blocks of tokens.
_WHOLE_KERNEL = 100_000
_WORDS = 16_384


class Options(NamedTuple):
    """Options of the chunked computation.

    Attributes:
      form: form of the objective.
      tied: whether the kernel is [vocab, width].
      chunk_size: positions per chunk and device.
    """

    form: Form
    tied: bool
    chunk_size: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def linear_objective(
    hidden: Float[Array, "passes positions width"],
    kernel: Float[Array, "in_features out_features"],
    bias: Float[Array, " vocab"] | None,
    labels: Integer[Array, " positions"],
    weights: Weights,
    options: Options,
    split: Split | None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Compute `closed_form.softmax_objective` of ``hidden @ kernel + bias``.

    Supports first derivatives in reverse mode, in hidden states, kernel, bias and
    weights.

    Args:
      hidden: hidden states [1 or 2, positions, width].
      kernel: kernel [width, vocab], or [vocab, width] if tied.
      bias: bias [vocab] or None.
      labels: class ids.
      weights: see `softmax_objective`.
      options: options of the computation.
      split: mesh axes to shard over; None for one device.

    Returns:
      The loss, and the sums of cross entropy and divergence, which carry no gradient.
    """
    ce, s, _ = _chunks(hidden, kernel, bias, labels, weights, options, split, False)
    return weighted_sums(ce, s, weights)


def _forward(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    weights: Weights,
    options: Options,
    split: Split | None,
) -> tuple[Any, Any]:
    ce, s, gradients = _chunks(
        hidden, kernel, bias, labels, weights, options, split, True
    )
    found = weighted_sums(ce, s, weights)
    return found, (gradients, ce, s, found[1:], weights)


def _backward(options: Options, split: Split | None, kept: Any, cotangents: Any) -> Any:
    gradients, ce, s, (ce_sum, s_sum), weights = kept
    c = cotangents[0]
    d_hidden, d_kernel, d_bias = (
        None if g is None else (g * c).astype(g.dtype) for g in gradients
    )
    d_weights = Weights(
        s=c * weights.s_scale * s,
        ce=c * weights.ce_scale * ce,
        s_scale=c * s_sum,
        ce_scale=c * ce_sum,
    )
    return d_hidden, d_kernel, d_bias, None, d_weights


linear_objective.defvjp(_forward, _backward)


def _chunks(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    weights: Weights,
    options: Options,
    split: Split | None,
    with_gradient: bool,
) -> tuple[Array, Array, Any]:
    """Run `_local_chunks` on every device and sum kernel gradients over devices."""
    if split is None:
        return _local_chunks(
            hidden, kernel, bias, labels, weights, options, with_gradient
        )
    rows: Any = PartitionSpec(split.rows)
    whole: Any = PartitionSpec()
    tensor = PartitionSpec(split.tensor)
    across = tensor if options.tied else PartitionSpec(None, split.tensor)
    by_rows = PartitionSpec(None, split.rows)

    def local(h: Array, k: Array, b: Array | None, y: Array, w: Weights) -> Any:
        ce, s, gradients = _local_chunks(h, k, b, y, w, options, with_gradient)
        if not with_gradient:
            return ce, s, gradients
        d_hidden, *shared = gradients
        if options.form.axis:
            d_hidden = jax.lax.psum(d_hidden, options.form.axis)
        return ce, s, (d_hidden, *jax.lax.psum(shared, split.rows))

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(by_rows, across, tensor, rows, Weights(rows, rows, whole, whole)),
        out_specs=(rows, rows, (by_rows, across, tensor) if with_gradient else whole),
        check_vma=False,
    )(hidden, kernel, bias, labels, weights)


def _local_chunks(
    hidden: Array,
    kernel: Array,
    bias: Array | None,
    labels: Array,
    weights: Weights,
    options: Options,
    with_gradient: bool,
) -> tuple[Array, Array, Any]:
    """Compute cross entropy and divergence per position, and the three gradients."""
    passes, positions, width = hidden.shape
    count = max(-(-positions // options.chunk_size), 1)
    size = -(-positions // count)
    rest = count * size - positions
    hidden = jnp.pad(hidden, ((0, 0), (0, rest), (0, 0)))
    labels, w_s, w_ce = (
        jnp.pad(x, (0, rest)).reshape(count, size)
        for x in (labels, weights.s, weights.ce)
    )
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    product = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    inner, outer = (1, 0) if options.tied else (0, 1)  # axes of width and vocabulary

    def chunk(i: Array) -> tuple[Array, Array, Array, Array]:
        at = Weights(w_s[i], w_ce[i], weights.s_scale, weights.ce_scale)
        h = jax.lax.dynamic_slice(hidden, (0, i * size, 0), (passes, size, width))
        # Clear here too: NaN times a gradient of 0 would reach the kernel gradient.
        h = jnp.where((at.s != 0)[None, :, None], h, jnp.zeros((), h.dtype))
        h = h.reshape(-1, width)
        z = product(h, kernel, (((1,), (inner,)), ((), ())))
        if bias is not None:
            z += bias[None].astype(dtype)
        ce, s, g = all_rows(
            z.reshape(passes, size, z.shape[-1]),
            labels[i],
            at,
            options.form,
            with_gradient=with_gradient,
            local=True,
        )
        return ce, s, h, g

    def body(i: Array, carry: tuple) -> tuple:
        ce, s, gradients = carry
        new_ce, new_s, h, g = chunk(i)
        ce, s = ce.at[i].set(new_ce), s.at[i].set(new_s)
        if not with_gradient:
            return ce, s, None
        d_hidden, d_kernel, d_bias = gradients
        g = g.reshape(len(h), g.shape[-1])
        d_bias = None if d_bias is None else d_bias + jnp.sum(g, axis=0)
        g = as_factor(g, kernel)
        new = product(g, kernel, (((1,), (outer,)), ((), ())))
        new = new.astype(hidden.dtype).reshape(passes, size, width)
        d_hidden = jax.lax.dynamic_update_slice(d_hidden, new, (0, i * size, 0))
        d_kernel = _add_product(d_kernel, h, g, options.tied, product)
        return ce, s, (d_hidden, d_kernel, d_bias)

    # Derived from the inputs: within `jax.shard_map` the carry must have their type.
    zeros = jnp.zeros_like(w_s, dtype)
    gradients = None
    if with_gradient:
        gradients = (
            jnp.zeros_like(hidden),
            jnp.zeros_like(kernel, dtype),
            None if bias is None else jnp.zeros_like(bias, dtype),
        )
    ce, s, gradients = jax.lax.fori_loop(0, count, body, (zeros, zeros, gradients))
    ce, s = (x.reshape(-1)[:positions] for x in (ce, s))
    if not with_gradient:
        return ce, s, None
    d_hidden, d_kernel, d_bias = gradients
    d_bias = None if bias is None else d_bias.astype(bias.dtype)
    return ce, s, (d_hidden[:, :positions], d_kernel.astype(kernel.dtype), d_bias)


def _add_product(total: Array, h: Array, g: Array, tied: bool, product: Any) -> Array:
    """Return ``total + h^T g``, in blocks of tokens if the vocabulary is large."""
    contract = (((0,), (0,)), ((), ()))

    def of(words: Array) -> Array:
        return product(words, h, contract) if tied else product(h, words, contract)

    vocab = g.shape[1]
    if vocab <= _WHOLE_KERNEL:
        return total + of(g)
    axis = 0 if tied else 1

    def add(total: Array, start: Array | int, size: int) -> Array:
        words = jax.lax.dynamic_slice_in_dim(g, start, size, 1)
        old = jax.lax.dynamic_slice_in_dim(total, start, size, axis)
        return jax.lax.dynamic_update_slice_in_dim(total, old + of(words), start, axis)

    blocks, rest = divmod(vocab, _WORDS)
    total = jax.lax.fori_loop(
        0, blocks, lambda i, total: add(total, i * _WORDS, _WORDS), total
    )
    return add(total, blocks * _WORDS, rest) if rest else total
