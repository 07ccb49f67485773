r"""Closed-form value and gradient of the R-Drop objective for class ids.

The gradient is computed together with the value, in chunks of rows, with one
exponential per logit. The backward pass stores only the gradient.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.kernels.chunking import softmax_rows
from rdrop_jax.core.kernels.fused import weighted_sums
from rdrop_jax.core.kernels.softmax import SoftmaxOptions, rows_objective
from rdrop_jax.core.meshes import device_count
from rdrop_jax.core.metrics import Pair


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def softmax_objective(
    logits: Float[Array, "passes positions classes"],
    labels: Integer[Array, " positions"],
    weights: Pair,
    scales: Pair,
    options: SoftmaxOptions,
) -> tuple[Float[Array, ""], Pair]:
    """Compute weighted cross entropy plus weighted symmetric KL of one or two passes.

    The loss is differentiable in logits, weights and scales to any order, in forward
    and reverse mode. The two sums carry no gradient.

    Args:
      logits: logits [1 or 2, positions, classes].
      labels: class ids.
      weights: see `rdrop_jax.core.kernels.fused.fused_objective`.
      scales: scalar factors of the two weighted sums.
      options: options of the objective.

    Returns:
      The loss, and the sums over positions of both weighted terms.
    """
    values, _ = all_rows(logits, labels, weights, scales, options, with_gradient=False)
    return weighted_sums(values, weights, scales)


@softmax_objective.defjvp
def _softmax_objective_jvp(
    options: SoftmaxOptions, primals: tuple, tangents: tuple
) -> tuple:
    logits, labels, weights, scales = primals
    d_logits, _, d_weights, d_scales = tangents
    values, gradient = all_rows(
        logits, labels, weights, scales, options, with_gradient=True
    )
    loss, sums = weighted_sums(values, weights, scales)
    d_loss = jnp.sum(gradient.astype(loss.dtype) * d_logits.astype(loss.dtype))
    for scale, d_weight, d_scale, value, total in zip(
        scales, d_weights, d_scales, values, sums, strict=True
    ):
        d_loss += scale * jnp.sum(d_weight * _finite(value))
        d_loss += d_scale * _finite(total)
    return (loss, sums), (d_loss, jax.tree.map(jnp.zeros_like, sums))


def _finite(values: Array) -> Array:
    """Replace infinity by 0: times a tangent of 0 it would give NaN."""
    return jnp.where(jnp.isinf(values), 0.0, values)


def all_rows(
    logits: Float[Array, "passes positions classes"],
    labels: Integer[Array, " positions"],
    weights: Pair,
    scales: Pair,
    options: SoftmaxOptions,
    *,
    with_gradient: bool,
    local: bool = False,
) -> tuple[Pair, Array]:
    """Compute both terms per position, and the gradient of the loss.

    Each device processes chunks of its local rows, so no rows move between devices. If
    rows do not divide evenly, the last chunk starts early and recomputes some rows.

    Args:
      logits: logits [1 or 2, positions, classes].
      labels: class ids.
      weights: weights of both terms [positions].
      scales: scalar factors of the two weighted sums.
      options: options of the objective.
      with_gradient: whether to compute the gradient.
      local: whether the arrays are one device's shard, within `jax.shard_map`.

    Returns:
      The two terms [positions], and the gradient in the shape of the logits, or a
      scalar 0 without ``with_gradient``.
    """
    passes, positions, classes = logits.shape
    devices = 1 if local or _in_shard_map() else device_count()
    even = positions % devices == 0
    devices = devices if even else 1
    own = positions // devices
    # No chunks if classes are sharded, because every chunk would synchronize devices,
    # or if rows are uneven, because their placement is unknown.
    whole = not even or options.axis
    rows = own if whole else softmax_rows(own, classes, linear=local)
    count = -(-own // max(rows, 1))
    # On one device keep the shape: the loop would copy a reshaped array.
    lead = (devices,) if devices > 1 else ()
    first = (0,) * len(lead)
    split = logits.reshape(passes, *lead, own, classes)
    counts = Pair(*(w != 0 for w in weights))
    factors = Pair(*map(jnp.multiply, weights, scales))
    per_row = jax.tree.map(lambda x: x.reshape(*lead, own), (labels, counts, factors))

    def body(i: Array, carry: tuple[Pair, Array]) -> tuple[Pair, Array]:
        values, gradient = carry
        start = jnp.minimum(i * rows, own - rows)
        labels, counts, factors = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, rows, -1).reshape(-1),
            per_row,
        )
        # One slice per pass: the CPU backend is fastest on 2-D arrays.
        zs = [
            jax.lax.dynamic_slice(
                split, (k, *first, start, 0), (1, *lead, rows, classes)
            )[0].reshape(-1, classes)
            for k in range(passes)
        ]
        new, new_gradient = rows_objective(
            zs, labels, counts, factors, options, with_gradient
        )
        for k, g in enumerate(new_gradient):
            g = g.astype(gradient.dtype).reshape(*lead, rows, classes)[None]
            gradient = jax.lax.dynamic_update_slice(gradient, g, (k, *first, start, 0))
        values = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(
                old, new.reshape(*lead, rows), start, -1
            ),
            values,
            new,
        )
        return values, gradient

    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    # Derived from the logits to inherit their type in `jax.shard_map` and on
    # explicit meshes.
    zeros = jnp.zeros_like(split[0, ..., 0], dtype)
    gradient = jnp.zeros_like(split) if with_gradient else jnp.zeros((), logits.dtype)
    values, gradient = jax.lax.fori_loop(0, count, body, (Pair(zeros, zeros), gradient))
    if with_gradient:
        gradient = gradient.reshape(logits.shape)
    return Pair(*(x.reshape(-1) for x in values)), gradient


def _in_shard_map() -> bool:
    """Return whether the caller is in a `jax.shard_map` over all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.axis_names) and mesh.manual_axes == mesh.axis_names
