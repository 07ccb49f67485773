"""Attention in a narrow dtype, with a gradient that keeps few bytes."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float

from rdrop_jax.core.dropout import dropout
from rdrop_jax.core.kernels.partition import ROWS, TENSOR
from rdrop_jax.core.meshes import on_any_mesh, platform
from rdrop_jax.core.passes import Key
from rdrop_jax.errors import InputError


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
    query: Float[Array, "batch time heads head"],
    key: Float[Array, "batch source heads head"],
    value: Float[Array, "batch source heads head"],
    where: Bool[Array, "#batch 1 #time source"] | None,
    mask_key: Key | None,
    rate: float,
    masks: str,
    bias: Float[Array, "#batch heads time source"] | None = None,
) -> Float[Array, "batch time heads head"]:
    """Compute softmax attention with dropout on its weights.

    Exponents and sums are float32. On a TPU, the only array of shape [time, source]
    that is kept for the backward pass holds the exponentials in the dtype of the
    inputs. Elsewhere none is kept, and the scores are computed again. The weights are
    normalized after the product with the values, and their gradient is centered by a
    product of outputs, not of weights.

    Args:
      query: queries.
      key: keys.
      value: values.
      where: True where a position may attend; None for everywhere.
      mask_key: PRNG key of the dropout mask; None if ``rate`` is 0.
      rate: dropout rate on the weights.
      masks: see `rdrop_jax.dropout`.
      bias: term added to the scaled scores, such as for relative positions.

    Returns:
      An array like ``query``.
    """
    return _attend(query, key, value, where, mask_key, rate, masks, bias)[0]


def _attend(
    query: Array,
    key: Array,
    value: Array,
    where: Array | None,
    mask_key: Key | None,
    rate: float,
    masks: str,
    bias: Array | None,
) -> tuple[Array, tuple[Any, ...]]:
    scores = _scores(query, key, where, bias)
    top = jnp.max(scores, axis=-1, keepdims=True)
    powers = jnp.exp(scores - top)
    total = jnp.sum(powers, axis=-1).swapaxes(1, 2)[..., None]
    # Without the barrier, XLA keeps the float32 powers for the backward pass.
    powers = jax.lax.optimization_barrier(powers.astype(query.dtype))
    left = _dropped(mask_key, powers, rate, masks)
    mixed = jnp.einsum("bhts,bshd->bthd", left, value) / total
    mixed = mixed.astype(query.dtype)
    stored = powers if platform() == "tpu" else None
    kept = (query, key, value, where, mask_key, bias, stored, top, total, mixed)
    return mixed, kept


def _gradients(
    rate: float, masks: str, kept: tuple[Any, ...], slope: Array
) -> tuple[Array | None, ...]:
    query, key, value, where, mask_key, bias, powers, top, total, mixed = kept
    if powers is None:
        # The barrier keeps XLA from storing the scores of the forward pass instead.
        query, key, slope = jax.lax.optimization_barrier((query, key, slope))
        powers = jnp.exp(_scores(query, key, where, bias) - top).astype(query.dtype)
    wide = slope.astype(jnp.float32)
    center = jnp.sum(wide * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    scale = 1 / (total * math.sqrt(query.shape[-1]))
    center, scale = center.swapaxes(1, 2), scale.swapaxes(1, 2)
    of_weights = _dropped(
        mask_key, jnp.einsum("bthd,bshd->bhts", slope, value), rate, masks
    )
    of_scores = powers * ((of_weights - center) * scale)
    if where is not None:
        of_scores = jnp.where(where, of_scores, 0.0)
    of_bias = None
    if bias is not None:
        of_bias = of_scores * math.sqrt(query.shape[-1])
        if bias.shape[0] == 1:
            of_bias = jnp.sum(of_bias, axis=0, keepdims=True)
        of_bias = of_bias.astype(bias.dtype)
    of_scores = of_scores.astype(query.dtype)
    of_value = jnp.einsum(
        "bhts,bthd->bshd",
        _dropped(mask_key, powers, rate, masks),
        (wide / total).astype(query.dtype),
    )
    of_query = jnp.einsum("bhts,bshd->bthd", of_scores, key)
    of_key = jnp.einsum("bhts,bthd->bshd", of_scores, query)
    return of_query, of_key, of_value, None, None, of_bias


def _scores(query: Array, key: Array, where: Array | None, bias: Array | None) -> Array:
    products = _by_rows(jnp.einsum("bthd,bshd->bhts", query, key))
    return scaled(products, query.shape[-1], where, bias)


@jax.custom_jvp
def _by_rows(products: Array) -> Array:
    """Store scores of several passes as the softmax reads them, on a TPU.

    For passes by `jax.vmap`, XLA would store them transposed, and copy them. XLA does
    not partition the constraint over heads, nor without an axis of several passes.
    """
    return _of_one_pass(products)


# Without a rule, jax does not differentiate functions with `custom_vmap` in reverse.
_by_rows.defjvps(lambda slope, answer, products: slope)


@jax.custom_batching.custom_vmap
def _of_one_pass(products: Array) -> Array:
    return products


@_of_one_pass.def_vmap
def _of_passes(
    axis_size: int, in_batched: list[bool], products: Array
) -> tuple[Array, bool]:
    mesh = jax.sharding.get_abstract_mesh()
    whole = all(mesh.shape[axis] == 1 for axis in {*mesh.axis_names} - {"data", "fsdp"})
    if axis_size > 1 and platform() == "tpu" and whole and not mesh.empty:
        layout = Layout(tuple(range(products.ndim)))
        products = with_layout_constraint(products, layout)
    return products, in_batched[0]


def scaled(
    products: Float[Array, "..."],
    width: int,
    where: Bool[Array, "..."] | None,
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """Return float32 scores from products of queries and keys.

    Args:
      products: products of queries and keys.
      width: width of a head.
      where: True where a position may attend; None for everywhere.
      bias: term added to the scores.
    """
    scores = products.astype(jnp.float32) / jnp.sqrt(jnp.float32(width))
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if where is None:
        return scores
    return jnp.where(where, scores, jnp.finfo(jnp.float32).min)


def _dropped(mask_key: Key | None, x: Array, rate: float, masks: str) -> Array:
    return x if mask_key is None else dropout(mask_key, x, rate, masks=masks)


attend.defvjp(_attend, _gradients)


@on_any_mesh(positions=2)
def fused_attend(
    query: Float[Array, "batch time heads head"],
    key: Float[Array, "batch source heads head"],
    value: Float[Array, "batch source heads head"],
    where: Bool[Array, "#batch 1 #time source"] | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch time heads head"]:
    """Compute softmax attention by a kernel of cuDNN, which never stores the scores.

    It has no dropout on the weights and no bias. The backward pass computes the forward
    pass again.

    Args:
      query: queries, in bfloat16 or float16.
      key: keys.
      value: values.
      where: True where a position may attend; None for everywhere.
      implementation: that of `jax.nn.dot_product_attention`.

    Returns:
      An array like ``query``.

    Raises:
      InputError: heads whose width the kernel does not take.
    """
    width = query.shape[-1]
    if width % 8 or width > 128:
        raise InputError(
            "model.fused_attention: expected heads of a width that is a multiple of 8, "
            f"at most 128, got {width}. Change model.heads or model.width"
        )
    one_pass = jax.tree.map(lambda x: x[None], ((query, key, value), where))
    return _fused(implementation, *one_pass)[0]


# Arrays of several passes are [passes, batch, ...]; a mask may have one pass or row.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(
    implementation: str, arrays: tuple[Array, Array, Array], where: Array | None
) -> Array:
    kernel = functools.partial(_kernel, implementation)
    return _over_passes(kernel, arrays, where)


def _fused_forward(
    implementation: str, arrays: tuple[Array, Array, Array], where: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    return _fused(implementation, arrays, where), (arrays, where)


def _fused_gradients(
    implementation: str, kept: tuple[Any, ...], slope: Array
) -> tuple[Any, None]:
    def gradients(arrays: tuple[Array, ...], where: Array | None) -> tuple[Array, ...]:
        kernel = functools.partial(_kernel, implementation, where=where)
        return jax.vjp(lambda *x: kernel(x), *arrays[:3])[1](arrays[3])

    arrays, where = kept
    return _over_passes(gradients, (*arrays, slope), where), None


_fused.defvjp(_fused_forward, _fused_gradients)


def _over_passes(
    function: Callable[..., Any], arrays: tuple[Array, ...], where: Array | None
) -> Any:
    """Call a function of arrays and a mask; under `jax.vmap`, with more passes.

    The rule of jax for cuDNN gives the passes to queries but not to a mask that they
    share, which cuDNN refuses.
    """

    @jax.custom_batching.custom_vmap
    def run(arrays: tuple[Array, ...], where: Array | None) -> Any:
        return _per_device(function, arrays, where)

    @run.def_vmap
    def merge(size: int, batched: Any, arrays: Any, where: Any) -> tuple[Any, Any]:
        def merged(x: Array, is_batched: bool) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        arrays = jax.tree.map(merged, arrays, batched[0])
        if where is not None and (batched[1] or len(where) > 1):
            where = merged(where, batched[1])
        out = jax.tree.map(
            lambda x: x.reshape(size, -1, *x.shape[1:]), run(arrays, where)
        )
        return out, jax.tree.map(lambda x: True, out)

    return run(arrays, where)


def _per_device(
    function: Callable[..., Any], arrays: tuple[Array, ...], where: Array | None
) -> Any:
    """Call a function on the shard of each device, if the mesh is that of training.

    Otherwise XLA would gather the batch, to merge the passes with it.
    """
    mesh, query = jax.sharding.get_abstract_mesh(), arrays[0]
    auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
    if mesh.axis_names != (*ROWS, TENSOR) or not auto:
        return function(arrays, where)
    if query.shape[1] % math.prod(mesh.shape[axis] for axis in ROWS):
        return function(arrays, where)
    heads = TENSOR if query.shape[3] % mesh.shape[TENSOR] == 0 else None
    like_query = PartitionSpec(None, ROWS, None, heads)
    one_row = where is None or where.shape[1] == 1
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(like_query, PartitionSpec(None, None if one_row else ROWS)),
        out_specs=like_query,
        check_vma=False,
    )(arrays, where)


def _kernel(
    implementation: Any, arrays: tuple[Array, ...], where: Array | None
) -> Array:
    query, key, _ = arrays
    passes, batch, time = query.shape[:3]
    source = key.shape[2]
    if where is None and source % 2:
        where = jnp.ones((1, 1, 1, 1, source), bool)
    if where is not None:
        lead = (1, 1) if where.shape[:2] == (1, 1) else (passes, batch)
        where = jnp.broadcast_to(where, (*lead, 1, time, source))
        where = where.reshape(-1, 1, time, source)
        where = jnp.pad(where, ((0, 0), (0, 0), (0, time % 2), (0, source % 2)))
    query, key, value = (_even(x.reshape(-1, *x.shape[2:])) for x in arrays)
    mixed = jax.nn.dot_product_attention(
        query, key, value, mask=where, implementation=implementation
    )
    return mixed[:, :time].reshape(arrays[0].shape)


def _even(x: Array) -> Array:
    """Pad to an even length, as cuDNN needs for the backward pass."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
