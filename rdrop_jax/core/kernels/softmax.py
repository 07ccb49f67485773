r"""Objective and gradient of a chunk of rows of logits, with local or sharded classes.

With :math:`r = \log p - \log q`, :math:`K_1 = KL(p\|q)`, :math:`K_2 = KL(q\|p)`, the
target :math:`t`, and per-position coefficients c of the cross entropy and s of the
divergence,

.. math::
   \partial L/\partial z_1 = c\,(p - t) + \tfrac{s}{2} (p - q + p\,(r - K_1)), \qquad
   \partial L/\partial z_2 = c\,(q - t) + \tfrac{s}{2} (q - p - q\,(r + K_2)) .
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.core.losses import IMPOSSIBLE, at_least_float32, clear


class Form(NamedTuple):
    """Form of the objective.

    Attributes:
      label_smoothing: epsilon.
      smoothing: "uniform" or "fairseq".
      axis: mesh axis of a `jax.shard_map` that the classes are sharded over, in equal
        parts and in order. None if each row has all classes.
    """

    label_smoothing: float
    smoothing: str
    axis: str | None = None


class Rows(NamedTuple):
    """Rows of logits, one array per pass, with labels, masks and coefficients.

    Attributes:
      logits: logits [rows, classes] per pass.
      labels: global class ids [rows], counted over all shards.
      counts: True if the row counts [rows].
      labelled: True if the label of the row counts [rows].
      s: coefficient of the divergence [rows].
      ce: coefficient of the cross entropy [rows].
    """

    logits: list[Array]
    labels: Array
    counts: Array
    labelled: Array
    s: Array
    ce: Array


class Softmax(NamedTuple):
    """Logits, probabilities and log-sum-exp of one pass."""

    z: Array
    p: Array
    log_z: Array


def rows_objective(
    x: Rows, form: Form, with_gradient: bool
) -> tuple[Float[Array, " rows"], Float[Array, " rows"], list[Array]]:
    """Compute cross entropy of all passes and divergence per row, and the gradient.

    Args:
      x: the rows.
      form: form of the objective.
      with_gradient: whether to compute the gradient.

    Returns:
      ``ce`` [rows], ``s`` [rows], and for each pass the gradient of
      ``sum(x.ce * ce + x.s * s)`` [rows, classes]. Without ``with_gradient``, the
      list of gradients is empty.
    """
    passes = [
        softmax(
            jnp.maximum(at_least_float32(clear(x.counts, z)), IMPOSSIBLE), form.axis
        )
        for z in x.logits
    ]
    part = x.logits[0].shape[-1]
    classes = part * _parts(form.axis)
    labels = clear(x.labelled, x.labels)
    labels = labels.astype(int)
    valid = (labels >= 0) & (labels < classes)
    nan = jnp.where(valid, 1.0, jnp.nan)
    labels = jnp.clip(labels, 0, classes - 1)
    if form.axis:
        labels -= part * jax.lax.axis_index(form.axis)
    parts = [_cross_entropy(f, labels, form) for f in passes]
    ce = clear(x.labelled, sum(part[0] for part in parts) * nan)
    s, pulls = _divergence(passes, form.axis)
    if not with_gradient:
        return ce, s, []
    column = (x.ce * nan)[:, None]
    gradient = [column * part[1] for part in parts]
    if pulls:
        half = 0.5 * x.s[:, None]
        gradient = [g + half * pull for g, pull in zip(gradient, pulls, strict=True)]
    return ce, s, gradient


def _parts(axis: str | None) -> int:
    return jax.lax.axis_size(axis) if axis else 1


def _sum(x: Float[Array, "rows classes"], axis: str | None) -> Float[Array, "rows 1"]:
    found = jnp.sum(x, axis=-1, keepdims=True)
    return jax.lax.psum(found, axis) if axis else found


def _max(x: Float[Array, "rows classes"], axis: str | None) -> Float[Array, "rows 1"]:
    found = jnp.max(x, axis=-1, keepdims=True)
    return jax.lax.pmax(found, axis) if axis else found


def softmax(z: Float[Array, "rows classes"], axis: str | None = None) -> Softmax:
    """Softmax of rows whose classes are local or sharded over a mesh axis."""
    peak = _max(jax.lax.stop_gradient(z), axis)
    exp = jnp.exp(z - peak)
    total = _sum(exp, axis)
    return Softmax(z, exp * (1.0 / total), peak + jnp.log(total))


def _cross_entropy(f: Softmax, labels: Array, form: Form) -> tuple[Array, Array]:
    """Return cross entropy per row [rows] and its gradient [rows, classes].

    ``labels`` are relative to the first class of this shard and may be outside it.
    """
    label_smoothing, part = form.label_smoothing, f.z.shape[-1]
    within = jnp.clip(labels, 0, part - 1)[:, None]
    picked = jnp.take_along_axis(f.z, within, axis=-1)
    if form.axis:
        picked = _sum(jnp.where(within == labels[:, None], picked, 0.0), form.axis)
    reachable = picked > IMPOSSIBLE
    nll = jnp.where(reachable, f.log_z - picked, jnp.inf)
    hot = jnp.arange(part)[None] == labels[:, None]
    if label_smoothing == 0.0:
        # An impossible label has infinite loss and no gradient towards it.
        return nll[:, 0], f.p - jnp.where(hot & reachable, 1.0, 0.0)
    possible = f.z > IMPOSSIBLE
    # The sum gives the number of impossible classes, as long as the finite logits of a
    # row add up to less than 5e29. This saves one pass over the row.
    impossible = jnp.round(_sum(f.z, form.axis) / IMPOSSIBLE)
    num = part * _parts(form.axis) - jax.lax.stop_gradient(impossible)
    everywhere = _sum(jnp.where(possible, f.log_z - f.z, 0.0), form.axis)
    if form.smoothing == "uniform":
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
    twice = _sum((a.p - b.p) * r, axis)
    one = _sum(a.p * r, axis)
    other = twice - one
    apart = _max(jnp.abs(r), axis)[:, 0] >= -0.5 * IMPOSSIBLE
    s = jnp.where(apart, jnp.inf, 0.5 * twice[:, 0])
    change = a.p - b.p
    return s, [change + a.p * (r - one), -change - b.p * (r + other)]
