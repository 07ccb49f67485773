r"""Closed-form value and gradient of the R-Drop objective for class ids.

The gradient is computed together with the value, in chunks of rows, with one
exponential per logit. The backward pass stores only the gradient.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.kernels.softmax import Form, Rows, rows_objective
from rdrop_jax.core.losses import weighted

_WHOLE = 2**22  # maximum number of logits computed without a loop
# Logits per chunk, pass and device. On CPU, a chunk fits in cache.
_CHUNK = {"cpu": 320_000}
_CHUNK_ELSEWHERE = 10_000_000
_LEAST_ROWS = 8


class Weights(NamedTuple):
    """Weights of the positions in the objective.

    Attributes:
      s: weight of the divergence [positions]. At 0 the position is ignored and its
        logits may be anything.
      ce: weight of the cross entropy [positions]. At 0 the label may be anything.
      s_scale: scalar factor of the weighted sum of the divergence.
      ce_scale: scalar factor of the weighted sum of the cross entropy.
    """

    s: Array
    ce: Array
    s_scale: Array
    ce_scale: Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def softmax_objective(
    logits: Float[Array, "passes positions classes"],
    labels: Integer[Array, " positions"],
    weights: Weights,
    label_smoothing: float,
    smoothing: str,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Compute weighted cross entropy plus weighted symmetric KL of one or two passes.

    The loss is differentiable in logits and weights to any order, in forward and
    reverse mode. The two sums carry no gradient.

    Args:
      logits: logits [1 or 2, positions, classes].
      labels: class ids.
      weights: see `Weights`.
      label_smoothing: epsilon.
      smoothing: "uniform" or "fairseq".

    Returns:
      The loss ``ce_scale * ce + s_scale * s``, and the sums over positions: ``ce`` of
      the weighted cross entropy of all passes, ``s`` of the weighted divergence.
    """
    form = Form(label_smoothing, smoothing)
    ce, s, _ = all_rows(logits, labels, weights, form, with_gradient=False)
    return weighted_sums(ce, s, weights)


@softmax_objective.defjvp
def _softmax_objective_jvp(
    label_smoothing: float, smoothing: str, primals: tuple, tangents: tuple
) -> tuple:
    logits, labels, weights = primals
    d_logits, _, d = tangents
    form = Form(label_smoothing, smoothing)
    ce, s, gradient = all_rows(logits, labels, weights, form, with_gradient=True)
    loss, ce_sum, s_sum = weighted_sums(ce, s, weights)
    d_loss = jnp.sum(gradient.astype(loss.dtype) * d_logits.astype(loss.dtype))
    for scale, d_weight, d_scale, values, total in (
        (weights.ce_scale, d.ce, d.ce_scale, ce, ce_sum),
        (weights.s_scale, d.s, d.s_scale, s, s_sum),
    ):
        d_loss += scale * jnp.sum(d_weight * _finite(values))
        d_loss += d_scale * _finite(total)
    zero = jnp.zeros_like(loss)
    return (loss, ce_sum, s_sum), (d_loss, zero, zero)


def _finite(values: Array) -> Array:
    """Replace infinity by 0: times a tangent of 0 it would give NaN."""
    return jnp.where(jnp.isinf(values), 0.0, values)


def weighted_sums(
    ce: Float[Array, " positions"], s: Float[Array, " positions"], weights: Weights
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Return the loss and the weighted sums of cross entropy and divergence."""
    ce_sum = jnp.sum(weighted(weights.ce, ce))
    s_sum = jnp.sum(weighted(weights.s, s))
    loss = weighted(weights.ce_scale, ce_sum) + weighted(weights.s_scale, s_sum)
    return loss, ce_sum, s_sum


def all_rows(
    logits: Float[Array, "passes positions classes"],
    labels: Integer[Array, " positions"],
    weights: Weights,
    form: Form,
    *,
    with_gradient: bool,
    local: bool = False,
) -> tuple[Float[Array, " positions"], Float[Array, " positions"], Array]:
    """Compute cross entropy and divergence per position, and the gradient of the loss.

    Each device processes chunks of its local rows, so no rows move between devices. If
    rows do not divide evenly, the last chunk starts early and recomputes some rows.

    Args:
      logits: logits [1 or 2, positions, classes].
      labels: class ids.
      weights: see `Weights`.
      form: form of the objective.
      with_gradient: whether to compute the gradient.
      local: whether the arrays are one device's shard, within `jax.shard_map`.

    Returns:
      ``ce`` [positions], ``s`` [positions], and the gradient in the shape of the
      logits, or a scalar 0 without ``with_gradient``.
    """
    passes, positions, classes = logits.shape
    devices = 1 if local or _in_shard_map() else jax.device_count()
    even = positions % devices == 0
    devices = devices if even else 1
    own = positions // devices
    # No chunks if classes are sharded, because every chunk would synchronize devices,
    # or if rows are uneven, because their placement is unknown.
    rows = _chunk_rows(own, classes) if even and not form.axis else own
    count = -(-own // max(rows, 1))
    # On one device keep the shape: the loop would copy a reshaped array.
    lead = (devices,) if devices > 1 else ()
    first = (0,) * len(lead)
    split = logits.reshape(passes, *lead, own, classes)
    per_row = [
        x.reshape(*lead, own)
        for x in (
            labels,
            weights.s != 0,
            weights.ce != 0,
            weights.s * weights.s_scale,
            weights.ce * weights.ce_scale,
        )
    ]

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ce, s, gradient = carry
        start = jnp.minimum(i * rows, own - rows)
        at = [
            jax.lax.dynamic_slice_in_dim(x, start, rows, -1).reshape(-1)
            for x in per_row
        ]
        # One slice per pass: the CPU backend is fastest on 2-D arrays.
        zs = [
            jax.lax.dynamic_slice(
                split, (k, *first, start, 0), (1, *lead, rows, classes)
            )[0].reshape(-1, classes)
            for k in range(passes)
        ]
        new_ce, new_s, new_gradient = rows_objective(Rows(zs, *at), form, with_gradient)
        for k, g in enumerate(new_gradient):
            g = g.astype(gradient.dtype).reshape(*lead, rows, classes)[None]
            gradient = jax.lax.dynamic_update_slice(gradient, g, (k, *first, start, 0))
        ce, s = (
            jax.lax.dynamic_update_slice_in_dim(
                old, new.reshape(*lead, rows), start, -1
            )
            for old, new in ((ce, new_ce), (s, new_s))
        )
        return ce, s, gradient

    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    # Derived from the logits to inherit their type in `jax.shard_map` and on
    # explicit meshes.
    zeros = jnp.zeros_like(split[0, ..., 0], dtype)
    gradient = jnp.zeros_like(split) if with_gradient else jnp.zeros((), logits.dtype)
    ce, s, gradient = jax.lax.fori_loop(0, count, body, (zeros, zeros, gradient))
    if with_gradient:
        gradient = gradient.reshape(logits.shape)
    return ce.reshape(-1), s.reshape(-1), gradient


def _in_shard_map() -> bool:
    """Return whether the caller is in a `jax.shard_map` over all mesh axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.axis_names) and mesh.manual_axes == mesh.axis_names


def _chunk_rows(positions: int, classes: int) -> int:
    """Return the number of positions per chunk; chunks have about equal size."""
    if positions * classes <= _WHOLE:
        return positions
    most = _CHUNK.get(jax.default_backend(), _CHUNK_ELSEWHERE)
    count = max(positions // max(most // classes, _LEAST_ROWS), 1)
    return -(-positions // count)
