r"""Closed-form divergence of two passes in either direction, and its gradient.

With :math:`r = \log p - \log q`, :math:`K_1 = KL(p\|q)`, :math:`K_2 = KL(q\|p)` and
factors f and g of the two,

.. math::
   \partial / \partial z_1 = f\,p\,(r - K_1) + g\,(p - q), \qquad
   \partial / \partial z_2 = f\,(q - p) - g\,q\,(r + K_2) ,

where the first and the last term are those of the targets.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from rdrop_jax.core.kernels.softmax import row_max, row_sum, softmax
from rdrop_jax.core.losses import IMPOSSIBLE, at_least_float32, clear
from rdrop_jax.core.metrics import Pair

# Factors of KL(p || q) and KL(q || p).
DIRECTIONS = {
    "symmetric_kl": (0.5, 0.5),
    "forward_kl": (1.0, 0.0),
    "reverse_kl": (0.0, 1.0),
}


class PairOptions(NamedTuple):
    """Options of the divergence.

    Attributes:
      divergence: a key of `DIRECTIONS`.
      fixed_targets: whether p is constant in each KL(p || q).
      axis: see `rdrop_jax.core.kernels.softmax.SoftmaxOptions`.
    """

    divergence: str
    fixed_targets: bool
    axis: str | None = None


def pair_objective(
    options: PairOptions,
    logits: list[Array],
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, list[Array]]:
    """Compute the divergence of two passes per position, and the gradient.

    This is a `rdrop_jax.core.kernels.linear.LogitsFunction` once ``options`` is bound.

    Args:
      options: options of the divergence.
      logits: one array [2, positions, vocab], or two arrays [1, positions, vocab].
      labels: ignored.
      weights: weights [positions]; only those of the divergence count.
      scales: scalar factors of the weighted sums.
      with_gradient: whether to compute the gradient.
    """
    keep = weights.kl != 0
    a, b = (
        softmax(jnp.maximum(at_least_float32(clear(keep, z)), IMPOSSIBLE), options.axis)
        for each in logits
        for z in each
    )
    r = (a.z - b.z) - (a.log_z - b.log_z)
    # A class that only one pass excludes: infinite towards this pass.
    limit = -0.5 * IMPOSSIBLE
    one, other = row_sum(a.p * r, options.axis), -row_sum(b.p * r, options.axis)
    first, second = DIRECTIONS[options.divergence]
    if first == second:  # in this form no term is negative
        s = first * row_sum((a.p - b.p) * r, options.axis)
    else:
        s = first * one + second * other
    forward = row_max(r, options.axis) >= limit
    reverse = row_max(-r, options.axis) >= limit
    infinite = (forward & (first > 0)) | (reverse & (second > 0))
    kl = jnp.where(infinite, jnp.inf, s)[:, 0]
    values = Pair(jnp.zeros_like(kl), kl)
    if not with_gradient:
        return values, []
    change = a.p - b.p
    d_a, d_b = second * change, -first * change
    if not options.fixed_targets:
        d_a += first * a.p * (r - one)
        d_b -= second * b.p * (r + other)
    column = (weights.kl * scales.kl)[:, None]
    gradients = [column * d_a, column * d_b]
    if len(logits) == 1:
        return values, [jnp.stack(gradients)]
    return values, [g[None] for g in gradients]
