r"""The R-Drop objective of class ids in closed form, value and gradient in one go.

With :math:`r = \log p - \log q`, :math:`K_1 = KL(p\|q)`, :math:`K_2 = KL(q\|p)`, the
target :math:`t`, and per position the coefficients c of the cross entropy and s of the
divergence,

.. math::
   \partial L/\partial z_1 = c\,(p - t) + \tfrac{s}{2} (p - q + p\,(r - K_1)), \qquad
   \partial L/\partial z_2 = c\,(q - t) + \tfrac{s}{2} (q - p - q\,(r + K_2)) .

The gradient is made where the value is made, one exponential per logit, a few rows at a
time: what is kept for the backward pass is the gradient itself and nothing else.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.losses import at_least_float32, clear

# Below every finite logit that means something; p is 0 there and z - z is not NaN.
_IMPOSSIBLE = -1e30
_WHOLE = 2**22  # logits that are not worth a loop
# Rows at a time and device. On CPU a chunk stays in the cache; others want long rows.
_ROWS = {"cpu": 32}
_ROWS_ELSEWHERE = 1024


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


class _Chunk(NamedTuple):
    """Rows of logits, one array per pass, and what is known of each row."""

    logits: list[Array]
    labels: Array
    counts: Array
    labelled: Array
    s: Array
    ce: Array


class _Pass(NamedTuple):
    z: Array
    p: Array
    log_z: Array


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
    ce, s, _ = _rows(logits, labels, weights, label_smoothing, smoothing, False)
    return _sums(ce, s, weights)


@softmax_objective.defjvp
def _softmax_objective_jvp(
    label_smoothing: float, smoothing: str, primals: tuple, tangents: tuple
) -> tuple:
    logits, labels, weights = primals
    d_logits, _, d = tangents
    ce, s, gradient = _rows(logits, labels, weights, label_smoothing, smoothing, True)
    loss, ce_sum, s_sum = _sums(ce, s, weights)
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


def _product(weight: Array, values: Array) -> Array:
    """0 where the weight is 0, whatever the value is."""
    return jnp.where(weight == 0, 0.0, weight * values)


def _sums(ce: Array, s: Array, weights: Weights) -> tuple[Array, Array, Array]:
    ce_sum = jnp.sum(_product(weights.ce, ce))
    s_sum = jnp.sum(_product(weights.s, s))
    loss = _product(weights.ce_scale, ce_sum) + _product(weights.s_scale, s_sum)
    return loss, ce_sum, s_sum


def _rows(
    logits: Array,
    labels: Array,
    weights: Weights,
    label_smoothing: float,
    smoothing: str,
    with_gradient: bool,
) -> tuple[Array, Array, Array]:
    """Per position cross entropy and divergence, and the gradient of the loss.

    Chunk i holds rows i, i + n, i + 2n, ..: strided, so that where rows are split over
    devices every device works on rows of its own and none moves.
    """
    passes, positions, classes = logits.shape
    count = _chunk_count(positions, classes)
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
        return _chunk(_Chunk(zs, *at), label_smoothing, smoothing, with_gradient)

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


def _chunk_count(positions: int, classes: int) -> int:
    """The most equal chunks that are long enough and split over devices."""
    devices = jax.device_count()
    least = devices * _ROWS.get(jax.default_backend(), _ROWS_ELSEWHERE)
    if positions * classes <= _WHOLE * devices:
        return 1
    for count in range(positions // least, 1, -1):
        if positions % count == 0 and positions // count % devices == 0:
            return count
    return 1


def _chunk(
    x: _Chunk, label_smoothing: float, smoothing: str, with_gradient: bool
) -> tuple[Array, Array, list[Array]]:
    passes = [_softmax(clear(x.counts, z)) for z in x.logits]
    classes = x.logits[0].shape[-1]
    labels = clear(x.labelled, x.labels)
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    valid = (labels >= 0) & (labels < classes)
    nan = jnp.where(valid, 1.0, jnp.nan)
    parts = [
        _cross_entropy(f, jnp.clip(labels, 0, classes - 1), label_smoothing, smoothing)
        for f in passes
    ]
    ce = clear(x.labelled, sum(part[0] for part in parts) * nan)
    s, pulls = _divergence(passes)
    if not with_gradient:
        return ce, s, []
    column = (x.ce * nan)[:, None]
    gradient = [column * part[1] for part in parts]
    if pulls:
        half = 0.5 * x.s[:, None]
        gradient = [g + half * pull for g, pull in zip(gradient, pulls, strict=True)]
    return ce, s, gradient


def _softmax(logits: Float[Array, "rows classes"]) -> _Pass:
    z = jnp.maximum(at_least_float32(logits), _IMPOSSIBLE)
    peak = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    exp = jnp.exp(z - peak)
    total = jnp.sum(exp, axis=-1, keepdims=True)
    return _Pass(z, exp * (1.0 / total), peak + jnp.log(total))


def _cross_entropy(
    f: _Pass, labels: Array, label_smoothing: float, smoothing: str
) -> tuple[Array, Array]:
    """Cross entropy per row [rows] and its gradient [rows, classes]."""
    picked = jnp.take_along_axis(f.z, labels[:, None], axis=-1)
    reachable = picked > _IMPOSSIBLE
    nll = jnp.where(reachable, f.log_z - picked, jnp.inf)
    hot = jnp.arange(f.z.shape[-1])[None] == labels[:, None]
    if label_smoothing == 0.0:
        # An unreachable label: infinite loss, and no way down.
        return nll[:, 0], f.p - jnp.where(hot & reachable, 1.0, 0.0)
    possible = f.z > _IMPOSSIBLE
    # The sum of all counts what is impossible, as long as all finite logits of a row
    # add up to less than 5e29: a pass over the row less than counting would take.
    impossible = jnp.round(jnp.sum(f.z, -1, keepdims=True) / _IMPOSSIBLE)
    num = f.z.shape[-1] - jax.lax.stop_gradient(impossible)
    everywhere = jnp.sum(jnp.where(possible, f.log_z - f.z, 0.0), -1, keepdims=True)
    if smoothing == "uniform":
        each = label_smoothing / num
        own = jnp.full_like(each, 1.0 - label_smoothing)
    else:
        each = label_smoothing / jnp.maximum(num - 1.0, 1.0)
        own = 1.0 - label_smoothing - each
    target = jnp.where(possible, jnp.where(hot, own + each, each), 0.0)
    ce = own * nll + each * everywhere
    return ce[:, 0], f.p * (own + each * num) - target


def _divergence(passes: list[_Pass]) -> tuple[Array, list[Array]]:
    """Half Jeffreys divergence per row, and twice its gradient for each pass."""
    if len(passes) == 1:
        return jnp.zeros_like(passes[0].log_z[:, 0]), []
    a, b = passes
    r = (a.z - b.z) - (a.log_z - b.log_z)
    # Written as one sum no term is negative, and nearly equal passes lose no digits.
    twice = jnp.sum((a.p - b.p) * r, axis=-1, keepdims=True)
    one = jnp.sum(a.p * r, axis=-1, keepdims=True)
    other = twice - one
    apart = jnp.max(jnp.abs(r), axis=-1) >= -0.5 * _IMPOSSIBLE
    s = jnp.where(apart, jnp.inf, 0.5 * twice[:, 0])
    change = a.p - b.p
    return s, [change + a.p * (r - one), -change - b.p * (r + other)]
