r"""Objective and gradient of a chunk of rows of logits, with local or sharded classes.

With :math:`r = \log p - \log q`, :math:`K_1 = KL(p\|q)`, :math:`K_2 = KL(q\|p)`, the
target :math:`t`, and per-position factors c of the cross entropy and s of the
divergence,

.. math::
   \partial L/\partial z_1 = c\,(p - t) + \tfrac{s}{2} (p - q + p\,(r - K_1)), \qquad
   \partial L/\partial z_2 = c\,(q - t) + \tfrac{s}{2} (q - p - q\,(r + K_2)) .
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.label_checks import valid_class_ids
from rdrop_jax.core.losses import IMPOSSIBLE, at_least_float32, clear
from rdrop_jax.core.metrics import Pair


class SoftmaxOptions(NamedTuple):
    """Options of the objective of a softmax.

    Attributes:
      label_smoothing: epsilon.
      smoothing: "uniform" or "fairseq".
      axis: mesh axis of a `jax.shard_map` that the classes are sharded over, in equal
        parts and in order. None if each row has all classes.
    """

    label_smoothing: float
    smoothing: str
    axis: str | None = None


class Softmax(NamedTuple):
    """Logits, probabilities and log-sum-exp of one pass."""

    z: Array
    p: Array
    log_z: Array


def rows_objective(
    logits: list[Float[Array, "rows classes"]],
    labels: Integer[Array, " rows"],
    counts: Pair,
    factors: Pair,
    options: SoftmaxOptions,
    with_gradient: bool,
) -> tuple[Pair, list[Array]]:
    """Compute cross entropy of all passes and divergence per row, and the gradient.

    Args:
      logits: logits, one array per pass.
      labels: global class ids, counted over all shards.
      counts: masks [rows]: True if the label counts, and if the row counts.
      factors: factors of the two terms in the loss [rows].
      options: options of the objective.
      with_gradient: whether to compute the gradient.

    Returns:
      The two terms [rows], and for each pass the gradient of
      ``sum(factors.ce * ce + factors.kl * kl)`` [rows, classes]. Without
      ``with_gradient``, the list of gradients is empty.
    """
    passes = [
        softmax(
            jnp.maximum(at_least_float32(clear(counts.kl, z)), IMPOSSIBLE), options.axis
        )
        for z in logits
    ]
    part = logits[0].shape[-1]
    labels, valid = valid_class_ids(
        clear(counts.ce, labels), part * _parts(options.axis)
    )
    if options.axis:
        labels -= part * jax.lax.axis_index(options.axis)
    parts = [_cross_entropy(f, labels, options) for f in passes]
    ce = clear(counts.ce, sum(part[0] for part in parts) * valid)
    kl, pulls = _divergence(passes, options.axis)
    if not with_gradient:
        return Pair(ce, kl), []
    column = (factors.ce * valid)[:, None]
    gradient = [column * part[1] for part in parts]
    if pulls:
        half = 0.5 * factors.kl[:, None]
        gradient = [g + half * pull for g, pull in zip(gradient, pulls, strict=True)]
    return Pair(ce, kl), gradient


def _parts(axis: str | None) -> int:
    return jax.lax.axis_size(axis) if axis else 1


def row_sum(
    x: Float[Array, "rows classes"], axis: str | None
) -> Float[Array, "rows 1"]:
    """Sum classes that are local or sharded over a mesh axis."""
    found = jnp.sum(x, axis=-1, keepdims=True)
    return jax.lax.psum(found, axis) if axis else found


def row_max(
    x: Float[Array, "rows classes"], axis: str | None
) -> Float[Array, "rows 1"]:
    """Return the maximum over classes that are local or sharded over a mesh axis."""
    found = jnp.max(x, axis=-1, keepdims=True)
    return jax.lax.pmax(found, axis) if axis else found


def softmax(z: Float[Array, "rows classes"], axis: str | None = None) -> Softmax:
    """Softmax of rows whose classes are local or sharded over a mesh axis."""
    peak = row_max(jax.lax.stop_gradient(z), axis)
    exp = jnp.exp(z - peak)
    total = row_sum(exp, axis)
    return Softmax(z, exp * (1.0 / total), peak + jnp.log(total))


def _cross_entropy(
    f: Softmax, labels: Array, options: SoftmaxOptions
) -> tuple[Array, Array]:
    """Return cross entropy per row [rows] and its gradient [rows, classes].

    ``labels`` are relative to the first class of this shard and may be outside it.
    """
    label_smoothing, part = options.label_smoothing, f.z.shape[-1]
    within = jnp.clip(labels, 0, part - 1)[:, None]
    picked = jnp.take_along_axis(f.z, within, axis=-1)
    if options.axis:
        picked = row_sum(
            jnp.where(within == labels[:, None], picked, 0.0), options.axis
        )
    reachable = picked > IMPOSSIBLE
    nll = jnp.where(reachable, f.log_z - picked, jnp.inf)
    hot = jnp.arange(part)[None] == labels[:, None]
    if label_smoothing == 0.0:
        # An impossible label has infinite loss and no gradient towards it.
        return nll[:, 0], f.p - jnp.where(hot & reachable, 1.0, 0.0)
    possible = f.z > IMPOSSIBLE
    # The sum gives the number of impossible classes, as long as the finite logits of a
    # row add up to less than 5e29. This saves one pass over the row.
    impossible = jnp.round(row_sum(f.z, options.axis) / IMPOSSIBLE)
    num = part * _parts(options.axis) - jax.lax.stop_gradient(impossible)
    everywhere = row_sum(jnp.where(possible, f.log_z - f.z, 0.0), options.axis)
    if options.smoothing == "uniform":
        each = label_smoothing / num
        own = jnp.full_like(each, 1.0 - label_smoothing)
    else:
        each = label_smoothing / jnp.maximum(num - 1.0, 1.0)
        own = 1.0 - label_smoothing - each
    target = jnp.where(possible, jnp.where(hot, own + each, each), 0.0)
    ce = own * nll + each * everywhere
    return ce[:, 0], f.p * (own + each * num) - target


def _divergence(passes: list[Softmax], axis: str | None) -> tuple[Array, list[Array]]:
    """Return half the Jeffreys divergence per row, and twice its gradient per pass."""
    if len(passes) == 1:
        return jnp.zeros_like(passes[0].log_z[:, 0]), []
    a, b = passes
    r = (a.z - b.z) - (a.log_z - b.log_z)
    # In this form no term is negative and nearly equal passes lose no precision.
    twice = row_sum((a.p - b.p) * r, axis)
    one = row_sum(a.p * r, axis)
    other = twice - one
    apart = row_max(jnp.abs(r), axis)[:, 0] >= -0.5 * IMPOSSIBLE
    s = jnp.where(apart, jnp.inf, 0.5 * twice[:, 0])
    change = a.p - b.p
    return s, [change + a.p * (r - one), -change - b.p * (r + other)]
