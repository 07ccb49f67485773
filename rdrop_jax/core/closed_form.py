r"""The R-Drop objective of class ids in closed form, value and gradient in one go.

The gradient is made where the value is made, one exponential per logit, a few rows at a
time: what is kept for the backward pass is the gradient itself and nothing else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.losses import weighted
from rdrop_jax.core.softmax_rows import Form, Rows, rows_objective

_WHOLE = 2**22  # logits that are not worth a loop
# Logits at a time, pass and device: on CPU what stays in the cache.
_CHUNK = {"cpu": 320_000}
_CHUNK_ELSEWHERE = 10_000_000
_LEAST_ROWS = 8


class Weights(NamedTuple):
    """What a position counts for.

    Attributes:
      s: weight of the divergence [positions]; where 0, the position does not count at
        all, and its logits may be anything.
      ce: weight of the cross entropy [positions]; where 0, the label may be anything.
      s_scale: scalar that multiplies the weighted sum of the divergence.
      ce_scale: the same for the cross entropy.
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
    """Weighted cross entropy plus weighted symmetric KL of one or two passes.

    Differentiable any number of times, forward and backward, in logits and weights;
    the two sums carry no gradient.

    Args:
      logits: [1 or 2, positions, classes].
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
    """0 for infinity, which has no slope, and would turn a tangent of 0 into NaN."""
    return jnp.where(jnp.isinf(values), 0.0, values)


def weighted_sums(
    ce: Float[Array, " positions"], s: Float[Array, " positions"], weights: Weights
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The loss, and the weighted sums of cross entropy and divergence."""
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
    """Per position cross entropy and divergence, and the gradient of the loss.

    Chunk i holds rows i, i + n, i + 2n, ..: strided, so that where rows are split over
    devices every device works on rows of its own and none moves.

    Args:
      logits: [1 or 2, positions, classes].
      labels: class ids.
      weights: see `Weights`.
      form: which objective.
      with_gradient: whether to make it.
      local: this is one device's part, within `jax.shard_map`.

    Returns:
      ``ce`` [positions], ``s`` [positions], and the gradient in the shape of the
      logits; a scalar 0 without.
    """
    passes, positions, classes = logits.shape
    devices = 1 if local else jax.device_count()
    # Each chunk of split classes would wait for the other devices anew.
    count = 1 if form.axis else _chunk_count(positions, classes, devices)
    rows = positions // count
    stacked = logits.reshape(passes, rows, count, classes)
    per_row = [
        x.reshape(rows, count)
        for x in (
            labels,
            weights.s != 0,
            weights.ce != 0,
            weights.s * weights.s_scale,
            weights.ce * weights.ce_scale,
        )
    ]

    def chunk(i: Array) -> tuple[Array, Array, list[Array]]:
        at = [jax.lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in per_row]
        # A slice per pass: arrays of two axes are what the CPU backend is fast on.
        zs = [
            jax.lax.dynamic_slice(stacked, (k, 0, i, 0), (1, rows, 1, classes)).reshape(
                rows, classes
            )
            for k in range(passes)
        ]
        return rows_objective(Rows(zs, *at), form, with_gradient)

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        ce, s, gradient = carry
        new_ce, new_s, new_gradient = chunk(i)
        for k, g in enumerate(new_gradient):
            g = g.astype(gradient.dtype)[None, :, None]
            gradient = jax.lax.dynamic_update_slice(gradient, g, (k, 0, i, 0))
        ce = jax.lax.dynamic_update_index_in_dim(ce, new_ce, i, 1)
        s = jax.lax.dynamic_update_index_in_dim(s, new_s, i, 1)
        return ce, s, gradient

    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    zeros = jnp.zeros((rows, count), dtype)
    gradient = jnp.zeros(stacked.shape if with_gradient else (), logits.dtype)
    ce, s, gradient = jax.lax.fori_loop(0, count, body, (zeros, zeros, gradient))
    if with_gradient:
        gradient = gradient.reshape(logits.shape)
    return ce.reshape(-1), s.reshape(-1), gradient


def _chunk_count(positions: int, classes: int, devices: int) -> int:
    """The most equal chunks that are long enough and split over devices."""
    most = _CHUNK.get(jax.default_backend(), _CHUNK_ELSEWHERE)
    least = devices * max(most // classes, _LEAST_ROWS)
    if positions * classes <= _WHOLE * devices:
        return 1
    for count in range(positions // least, 1, -1):
        if positions % count == 0 and positions // count % devices == 0:
            return count
    return 1
