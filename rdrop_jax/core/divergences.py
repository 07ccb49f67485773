"""Per-position divergences between two passes. No function reduces over positions.

Precision, masks and impossible classes are as in `rdrop_jax.core.losses`. For nearly
equal passes, rounding errors of `kl_divergence` and `js_divergence` may exceed their
values and make them negative. `symmetric_kl` is never negative.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.core.losses import (
    Logits,
    Mask,
    Positions,
    at_least_float32,
    check_same_shape,
    clear,
    log_probs,
)
from rdrop_jax.core.meshes import on_any_mesh


@on_any_mesh(positions=1)
def kl_divergence(
    logits_p: Logits, logits_q: Logits, *, where: Mask | None = None
) -> Positions:
    r"""One-way :math:`KL(p \| q) = \sum_v p_v (\log p_v - \log q_v)`.

    Args:
      logits_p: scores of p [..., classes].
      logits_q: scores of q [..., classes].
      where: positions that count.

    Returns:
      Nats per position [...]; gradients flow through both arguments.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> p, q = jnp.array([[0.0, 0.0]]), jnp.array([[1.0, 0.0]])
      >>> round(float(kl_divergence(p, q)[0]), 4)
      0.1201
    """
    check_same_shape("logits_p", logits_p, "logits_q", logits_q)
    log_p, in_p = log_probs(logits_p, where)
    log_q, in_q = log_probs(logits_q, where)
    p = jnp.where(in_p, jnp.exp(log_p), 0.0)
    terms = jnp.where(in_q, p * (log_p - log_q), jnp.where(in_p, jnp.inf, 0.0))
    return clear(where, jnp.sum(terms, axis=-1))


@on_any_mesh(positions=1)
def symmetric_kl(
    logits_a: Logits, logits_b: Logits, *, where: Mask | None = None
) -> Positions:
    r"""Consistency term of R-Drop: half the Jeffreys divergence.

    :math:`\tfrac12 (KL(p\|q) + KL(q\|p)) = \tfrac12 \sum_v (p_v - q_v)(\log p_v - \log
    q_v)`. In this form no term is negative and nearly equal passes lose no precision.
    Source: Eq. 2 of arXiv 2106.14448.

    Args:
      logits_a: scores of one pass [..., classes].
      logits_b: scores of the other [..., classes].
      where: positions that count.

    Returns:
      Nats per position [...]; gradients flow through both arguments.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
      >>> round(float(symmetric_kl(a, b)[0]), 4)
      0.4621
    """
    check_same_shape("logits_a", logits_a, "logits_b", logits_b)
    log_a, in_a = log_probs(logits_a, where)
    log_b, in_b = log_probs(logits_b, where)
    a = jnp.where(in_a, jnp.exp(log_a), 0.0)
    b = jnp.where(in_b, jnp.exp(log_b), 0.0)
    terms = jnp.where(in_a == in_b, (a - b) * (log_a - log_b), jnp.inf)
    return clear(where, 0.5 * jnp.sum(terms, axis=-1))


@on_any_mesh(positions=1)
def js_divergence(
    logits_a: Logits, logits_b: Logits, *, where: Mask | None = None
) -> Positions:
    r"""Jensen-Shannon divergence :math:`\tfrac12 KL(p\|m) + \tfrac12 KL(q\|m)`,
    :math:`m = (p + q)/2`; at most log 2, finite even with impossible classes.

    Args:
      logits_a: scores of one pass [..., classes].
      logits_b: scores of the other [..., classes].
      where: positions that count.

    Returns:
      Nats per position [...].

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([[99.0, 0.0]]), jnp.array([[0.0, 99.0]])
      >>> round(float(js_divergence(a, b)[0]), 4)
      0.6931
    """
    check_same_shape("logits_a", logits_a, "logits_b", logits_b)
    log_a, in_a = log_probs(logits_a, where)
    log_b, in_b = log_probs(logits_b, where)
    log_m = jnp.logaddexp(log_a, log_b)
    log_m = jnp.where(in_a, jnp.where(in_b, log_m, log_a), log_b) - jnp.log(2.0)
    a = jnp.where(in_a, jnp.exp(log_a), 0.0)
    b = jnp.where(in_b, jnp.exp(log_b), 0.0)
    terms = a * (log_a - log_m) + b * (log_b - log_m)
    return clear(where, 0.5 * jnp.sum(terms, axis=-1))


@on_any_mesh(positions=1)
def squared_difference(
    logits_a: Logits, logits_b: Logits, *, where: Mask | None = None
) -> Positions:
    r"""Squared distance of probabilities :math:`\sum_v (p_v - q_v)^2`.

    Args:
      logits_a: scores of one pass [..., classes].
      logits_b: scores of the other [..., classes].
      where: positions that count.

    Returns:
      One number in [0, 2] per position [...].

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([[99.0, 0.0]]), jnp.array([[0.0, 99.0]])
      >>> float(squared_difference(a, b)[0])
      2.0
    """
    check_same_shape("logits_a", logits_a, "logits_b", logits_b)
    log_a, in_a = log_probs(logits_a, where)
    log_b, in_b = log_probs(logits_b, where)
    a = jnp.where(in_a, jnp.exp(log_a), 0.0)
    b = jnp.where(in_b, jnp.exp(log_b), 0.0)
    return clear(where, jnp.sum((a - b) ** 2, axis=-1))


@on_any_mesh(positions=1)
def bernoulli_symmetric_kl(
    logits_a: Float[Array, "*positions labels"],
    logits_b: Float[Array, "*positions labels"],
    *,
    where: Mask | None = None,
) -> Positions:
    r"""Half Jeffreys divergence of independent Bernoullis, summed over labels.

    :math:`\tfrac12 \sum_l (\sigma(a_l) - \sigma(b_l))(a_l - b_l)`: the log-odds are the
    logits themselves.

    Args:
      logits_a: scores of one pass [..., labels].
      logits_b: scores of the other [..., labels].
      where: positions that count.

    Returns:
      Nats per position [...].

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = jnp.array([[1.0]]), jnp.array([[-1.0]])
      >>> round(float(bernoulli_symmetric_kl(a, b)[0]), 4)
      0.4621
    """
    check_same_shape("logits_a", logits_a, "logits_b", logits_b)
    a = at_least_float32(clear(where, logits_a))
    b = at_least_float32(clear(where, logits_b))
    same = jnp.isinf(a) & (a == b)  # inf - inf
    safe_a, safe_b = jnp.where(same, 0.0, a), jnp.where(same, 0.0, b)
    terms = (jax.nn.sigmoid(safe_a) - jax.nn.sigmoid(safe_b)) * (safe_a - safe_b)
    return clear(where, 0.5 * jnp.sum(terms, axis=-1))
