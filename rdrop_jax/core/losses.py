"""Per-position losses and divergences. No function reduces over positions.

All functions compute in at least float32. ``where`` is a boolean mask over positions
(True keeps): a masked position gives 0 with zero gradient, even if its inputs are NaN.
A class whose logit is -inf, or any number below -1e30, is impossible: it has
probability 0. If both passes exclude it, values stay finite and its gradient is 0. If
only one pass excludes it, an infinite divergence is +inf and never NaN. For nearly
equal passes, rounding errors of `kl_divergence` and `js_divergence` may exceed their
values and make them negative. `symmetric_kl` is never negative.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num, Shaped

from rdrop_jax.core.label_checks import are_class_ids, check_same_shape, valid_class_ids
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.options import SMOOTHINGS

Logits = Float[Array, "*positions classes"]
Positions = Float[Array, "*positions"]
Mask = Bool[Array, "*positions"]

# Lower than any meaningful logit, but finite, so that z - z is 0 and not NaN.
IMPOSSIBLE = -1e30


def at_least_float32(x: Num[Array, "..."]) -> Float[Array, "..."]:
    """Cast half precision and integers to float32; keep float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_factor(gradient: Array, kernel: Array) -> Array:
    """Cast a gradient in logits for products with the kernel.

    The result has the kernel's dtype, or float32 if that is float16: the range of
    float16 is too small for probabilities of rare tokens.
    """
    return gradient.astype(jnp.promote_types(kernel.dtype, jnp.bfloat16))


def clear(where: Mask | None, x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Set masked entries to 0; ``where`` covers the leading axes of ``x``.

    Use it on inputs as well as results: masking only the result would still pass NaN
    through the gradient (0 * NaN).
    """
    x = jnp.asarray(x)
    if where is None:
        return x
    where = where.reshape(where.shape + (1,) * (x.ndim - where.ndim))
    return jnp.where(where, x, jnp.zeros((), x.dtype))


def weighted(
    weight: Float[Array, "*positions"], values: Float[Array, "*positions"]
) -> Float[Array, "*positions"]:
    """Return ``weight * values``, with 0 for weight 0 even if the value is infinite."""
    return jnp.where(weight == 0, 0.0, weight * values)


def log_probs(
    logits: Logits, where: Mask | None
) -> tuple[Logits, Bool[Array, "*positions classes"]]:
    """Return log-probabilities, 0 for impossible classes, and the possible classes."""
    logits = at_least_float32(clear(where, logits))
    possible = ~(logits <= IMPOSSIBLE)  # True for NaN, which propagates
    safe = jnp.where(possible, logits, 0.0)
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exp = jnp.where(possible, jnp.exp(safe - peak), 0.0)
    log_z = jnp.log(jnp.sum(exp, axis=-1, keepdims=True)) + peak
    return jnp.where(possible, safe - log_z, 0.0), possible


def check_smoothing(label_smoothing: float, smoothing: str) -> None:
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing must be one of {SMOOTHINGS}: found {smoothing!r}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1): found {label_smoothing}")


@on_any_mesh(positions=1)
def softmax_cross_entropy(
    logits: Logits,
    labels: Integer[Array, "*positions"] | Float[Array, "*positions classes"],
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    where: Mask | None = None,
) -> Positions:
    r"""Cross entropy :math:`-\sum_v t_v \log p_v` with optional label smoothing.

    ``"uniform"``: :math:`t = (1 - \epsilon)\,y + \epsilon / V`, as in the R-Drop code.
    ``"fairseq"``: :math:`t = (1 - \epsilon)\,y + \epsilon / (V - 1)`, smoothed over
    the other classes only, as in current fairseq. V is the number of possible classes
    (see the module docstring).

    Args:
      logits: unnormalised scores [..., classes].
      labels: class ids [...], or probabilities [..., classes].
      label_smoothing: epsilon in [0, 1).
      smoothing: "uniform" or "fairseq".
      where: positions that count.

    Returns:
      Nats per position [...]. NaN where an unmasked class id is out of range.

    Raises:
      ValueError: mismatched shapes, or an unknown smoothing.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = softmax_cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
      >>> [round(float(x), 4) for x in loss]
      [1.3863, 1.3863]
    """
    check_smoothing(label_smoothing, smoothing)
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    ids = are_class_ids(labels, logits)
    log_p, possible = log_probs(logits, where)
    if ids:
        hit = _nll(log_p, possible, clear(where, labels))
    else:
        target = clear(where, labels).astype(log_p.dtype)
        missed = jnp.where((target > 0) & ~possible, jnp.inf, 0.0)
        hit = jnp.sum(missed - target * log_p, axis=-1)
    if label_smoothing:
        num = jnp.sum(possible, axis=-1).astype(log_p.dtype)
        everywhere = -jnp.sum(log_p, axis=-1)
        if smoothing == "uniform":
            each = label_smoothing / num
            hit = (1.0 - label_smoothing) * hit + each * everywhere
        else:
            each = label_smoothing / jnp.maximum(num - 1.0, 1.0)
            hit = (1.0 - label_smoothing - each) * hit + each * everywhere
    return clear(where, hit)


def _nll(
    log_p: Logits,
    possible: Bool[Array, "*positions classes"],
    labels: Integer[Array, "*positions"],
) -> Positions:
    index, valid = valid_class_ids(labels, log_p.shape[-1])
    picked = jnp.take_along_axis(log_p, index[..., None], axis=-1)[..., 0]
    reachable = jnp.take_along_axis(possible, index[..., None], axis=-1)[..., 0]
    return jnp.where(reachable, -picked, jnp.inf) * valid


@on_any_mesh(positions=-1)
def squared_error(
    predictions: Float[Array, "batch *outputs"],
    targets: Num[Array, "batch *outputs"],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared error per example, summed over output dimensions.

    Args:
      predictions: [batch] or [batch, outputs...].
      targets: array of exactly the same shape. [batch, 1] against [batch] is an error,
        because broadcasting would compare every pair of examples.
      where: examples that count.

    Returns:
      One number per example [batch].

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 2.0])).tolist()
      [1.0, 0.0]
    """
    check_same_shape("predictions", predictions, "targets", targets)
    a = at_least_float32(clear(where, predictions))
    b = at_least_float32(clear(where, targets))
    return jnp.sum((a - b) ** 2, axis=tuple(range(1, a.ndim)))


@on_any_mesh(positions=1)
def bernoulli_cross_entropy(
    logits: Float[Array, "*positions labels"],
    labels: Num[Array, "*positions labels"] | Bool[Array, "*positions labels"],
    *,
    where: Mask | None = None,
) -> Positions:
    r"""Multi-label cross entropy, summed over labels.

    :math:`-\sum_l y_l \log \sigma(z_l) + (1 - y_l) \log \sigma(-z_l)`.

    Args:
      logits: one score per label [..., labels].
      labels: 0/1 or probabilities [..., labels].
      where: positions that count.

    Returns:
      Nats per position [...]; NaN where an unmasked label is outside [0, 1].

    Raises:
      ValueError: shapes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = bernoulli_cross_entropy(jnp.zeros((1, 3)), jnp.array([[1, 0, 1]]))
      >>> round(float(loss[0]), 4)
      2.0794
    """
    check_same_shape("logits", logits, "labels", labels)
    z = at_least_float32(clear(where, logits))
    y = clear(where, labels).astype(z.dtype)
    on = jnp.where(y > 0, -y * jax.nn.log_sigmoid(z), 0.0)
    off = jnp.where(y < 1, -(1.0 - y) * jax.nn.log_sigmoid(-z), 0.0)
    valid = jnp.where((y >= 0) & (y <= 1), 1.0, jnp.nan)
    return clear(where, jnp.sum((on + off) * valid, axis=-1))


def _probs(
    logits: Logits, where: Mask | None
) -> tuple[Logits, Bool[Array, "*positions classes"], Logits]:
    """Return log-probabilities, possible classes, and probabilities."""
    log_p, possible = log_probs(logits, where)
    return log_p, possible, jnp.where(possible, jnp.exp(log_p), 0.0)


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
    (log_p, in_p, p), (log_q, in_q, _) = (
        _probs(z, where) for z in (logits_p, logits_q)
    )
    terms = jnp.where(in_q, p * (log_p - log_q), jnp.where(in_p, jnp.inf, 0.0))
    return clear(where, jnp.sum(terms, axis=-1))


@on_any_mesh(positions=1)
def symmetric_kl(
    logits_a: Logits, logits_b: Logits, *, where: Mask | None = None
) -> Positions:
    r"""Consistency term of R-Drop: half the Jeffreys divergence.

    :math:`\tfrac12 (KL(p\|q) + KL(q\|p)) = \tfrac12 \sum_v (p_v - q_v)(\log p_v - \log
    q_v)`. In this form no term is negative and nearly equal passes lose no precision.
    Source: Eq. 2 of arXiv 2106.14448. `rdrop_loss` computes it together with its
    gradient in `rdrop_jax.core.kernels.softmax`.

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
    (log_a, in_a, a), (log_b, in_b, b) = (
        _probs(z, where) for z in (logits_a, logits_b)
    )
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
    # After log_m: the order of a gradient's sums depends on it.
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
    a, b = (_probs(z, where)[2] for z in (logits_a, logits_b))
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
