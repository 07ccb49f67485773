r"""The R-Drop objective over stacked passes (Liang et al., 2021, Eq. 2-4 and 7-8).

For logits :math:`z_1 .. z_k` of k stochastic passes over one batch, define per position

.. math::
   CE = \sum_i CE(z_i, y), \qquad
   s = \mathrm{mean}_{i<j} \tfrac12 (KL(p_i \| p_j) + KL(p_j \| p_i))

and over the full batch, with :math:`w` = where * weight and :math:`l` = label_weight,

.. math::
   loss = \sum w l\,CE / \sum w l + \alpha \sum w s / \sum w .

For k = 2 and l = 1 this is the paper's objective averaged over positions. With k > 2
the weight of CE grows with k and that of s does not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num

from rdrop_jax.core import losses
from rdrop_jax.core.alpha import check_alpha, is_zero
from rdrop_jax.core.kernels.class_ids import softmax_objective
from rdrop_jax.core.kernels.softmax import SoftmaxOptions
from rdrop_jax.core.label_checks import are_class_ids, stacked
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair
from rdrop_jax.core.options import OBJECTIVE_SCALES
from rdrop_jax.core.terms import (
    Divergence,
    multilabel_terms,
    position_weights,
    rdrop_terms,
    regression_terms,
)

# Total weight of the cross entropy and of the divergence, a `Pair` or a plain tuple.
Denominators = tuple[Float[Array, ""], Float[Array, ""]]


def scales(
    own: Pair,
    denominators: Denominators | None,
    alpha: float | Float[Array, ""],
    num_passes: int,
    objective_scale: str,
) -> Pair:
    """Return the factors of the weighted sums of both terms in the loss."""
    if objective_scale not in OBJECTIVE_SCALES:
        raise ValueError(
            f"objective_scale must be one of {OBJECTIVE_SCALES}: found "
            f"{objective_scale!r}"
        )
    check_alpha(alpha, num_passes=num_passes)
    if isinstance(alpha, jax.core.Tracer):
        alpha = jnp.where(alpha >= 0, alpha, jnp.nan)
    ce, kl = (
        jnp.where(w == 0, 0.0, 1.0 / jnp.where(w == 0, 1.0, w))
        for w in (own if denominators is None else denominators)
    )
    if objective_scale == "mean":
        ce, kl = ce / num_passes, kl / num_passes
    return Pair(ce, alpha * kl)


def loss_and_metrics(
    terms: Pair,
    num_passes: int,
    alpha: float | Float[Array, ""],
    objective_scale: str,
    denominators: Denominators | None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """Return loss and metrics of two terms; the arguments are those of `rdrop_loss`."""
    own = Pair(*(term.weight for term in terms))
    factors = scales(own, denominators, alpha, num_passes, objective_scale)
    dtype = terms.ce.total.dtype  # that of a schedule or numpy may be wider
    factors = Pair(*(jnp.asarray(x, dtype) for x in factors))
    loss = factors.ce * terms.ce.total
    if not is_zero(alpha):  # 0 * inf would be NaN
        loss = loss + losses.weighted(factors.kl, terms.kl.total)
    return loss, _metrics(terms, num_passes)


def fused_loss_and_metrics(
    objective: Callable[[Pair, Pair], tuple[Array, Pair]],
    weights: Pair,
    dtype: jnp.dtype,
    num_passes: int,
    alpha: float | Float[Array, ""],
    objective_scale: str,
    denominators: Denominators | None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    """Return loss and metrics of an objective whose gradient comes with its value.

    Args:
      objective: function of weights [rows] and scalar factors of both terms, which
        returns the loss and the weighted sums.
      weights: result of `position_weights`.
      dtype: dtype of weights and factors.
      num_passes: number of passes.
      alpha: see `rdrop_loss`.
      objective_scale: see `rdrop_loss`.
      denominators: see `rdrop_loss`.
    """
    weights = Pair(*(w.astype(dtype) for w in weights))
    own = Pair(*map(jnp.sum, weights))
    rows = Pair(*(w.reshape(-1) for w in weights))
    factors = scales(own, denominators, alpha, num_passes, objective_scale)
    loss, sums = objective(rows, Pair(*(jnp.asarray(x, dtype) for x in factors)))
    return loss, _metrics(Pair(*map(Mean, sums, own)), num_passes)


def _metrics(terms: Pair, num_passes: int) -> dict[str, Mean]:
    """Return the logged metrics: ``ce`` per pass and ``kl``, without gradients."""
    ce = Mean(terms.ce.total / num_passes, terms.ce.weight)
    return jax.lax.stop_gradient({"ce": ce, "kl": terms.kl})


@on_any_mesh()
def rdrop_loss(
    logits: Float[Array, "passes *positions classes"],
    labels: Integer[Array, "*positions"] | Float[Array, "*positions classes"],
    *,
    alpha: float | Float[Array, ""],
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: str = "none",
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""R-Drop for classification and token prediction.

    :math:`\sum w l \sum_i CE_i / \sum w l + \alpha \sum w s / \sum w`, s the half
    Jeffreys divergence, averaged over pairs of passes (0 for one pass). For two passes
    this is Eq. 2-4 of arXiv 2106.14448. Computes in at least float32. For class ids,
    one or two passes and the default divergence, the gradient is computed in closed
    form together with the loss, in chunks of rows; otherwise by autodiff.

    Args:
      logits: [passes, ..., classes], as `forward_passes` returns them. Rows stacked as
        ``[x; x]``: ``logits.reshape(2, -1, classes)``; interleaved as ``repeat(x, 2)``:
        ``logits.reshape(-1, 2, classes).swapaxes(0, 1)``.
      labels: class ids [...] or probabilities [..., classes].
      alpha: weight of the consistency term, a scalar >= 0; 1 to 5 is usual. Concrete
        values are validated. A negative traced value makes the loss NaN; a positive
        traced value with one pass is not detected.
      label_smoothing: epsilon in [0, 1).
      smoothing: "uniform" (epsilon / V) or "fairseq" (epsilon / (V - 1)).
      where: positions that count [...]; masked positions may contain anything.
      weight: float weight per position [...]. A weight of 0 excludes the position, and
        the gradient in that weight is 0.
      label_weight: weight of the cross entropy only [...]. 0 marks an unlabelled
        position, which still enters the consistency term.
      divergence: "symmetric_kl", "forward_kl" (KL(p_i || p_j), i < j), "reverse_kl",
        "js", "squared" (of probabilities), or a function of two logits arrays.
      stop_gradient: "none", or "targets" to stop the gradient through p, the target,
        in each KL(p || q).
      objective_scale: "sum", or "mean" to divide the objective by the number of passes.
      denominators: ``(W_ce, W_s)`` to divide by instead of this batch's ``sum(w l)``
        and ``sum(w)``. For a microbatch, pass the sums of the full batch; the
        microbatch losses then add up to the loss of the full batch.

    Returns:
      Scalar loss in nats, and the metrics ``ce`` per pass and ``kl`` as `Mean`. Metrics
      carry no gradient; the terms that `rdrop_terms` returns do.

    Raises:
      ValueError: mismatched shapes, an alpha that is negative or not a number, one
        pass with alpha > 0, or an unknown option.

    If both passes use the same dropout masks, for instance two calls with one key or
    with dropout off, ``kl`` is exactly 0 and the loss cannot detect it. Run
    `check_stochastic` once, or use `forward_passes`.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]])
      >>> loss, metrics = rdrop_loss(logits, jnp.array([0, 1]), alpha=5.0)
      >>> round(float(loss), 4)
      0.8145
      >>> f"{metrics['kl']:.4f}"
      '0.0749'
    """
    logits, labels = stacked("logits", logits), jnp.asarray(labels)
    num_passes = len(logits)
    options = (num_passes, alpha, objective_scale, denominators)
    closed = divergence == "symmetric_kl" and stop_gradient == "none"
    if closed and num_passes <= 2 and are_class_ids(labels, logits, in_passes=True):
        losses.check_smoothing(label_smoothing, smoothing)
        rows = logits.reshape(num_passes, -1, logits.shape[-1])
        softmax = SoftmaxOptions(float(label_smoothing), smoothing)
        return fused_loss_and_metrics(
            lambda *factors: softmax_objective(
                rows, labels.reshape(-1), *factors, softmax
            ),
            position_weights(logits.shape[1:-1], where, weight, label_weight),
            jnp.promote_types(logits.dtype, jnp.float32),
            *options,
        )
    terms = rdrop_terms(
        logits,
        labels,
        label_smoothing=label_smoothing,
        smoothing=smoothing,
        where=where,
        weight=weight,
        label_weight=label_weight,
        divergence=divergence,
        stop_gradient=stop_gradient,
    )
    return loss_and_metrics(terms, *options)


@on_any_mesh()
def rdrop_regression_loss(
    predictions: Float[Array, "passes batch *outputs"],
    targets: Num[Array, "batch *outputs"],
    *,
    alpha: float | Float[Array, ""],
    where: Bool[Array, " batch"] | None = None,
    weight: Float[Array, " batch"] | None = None,
    label_weight: Float[Array, " batch"] | None = None,
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""R-Drop for regression: :math:`\sum_i (y_i - y)^2 + \alpha (y_1 - y_2)^2`.

    Squared errors are summed over output dimensions and averaged over examples.
    Source: Eq. 7-8 of arXiv 2106.14448.

    Args:
      predictions: [passes, batch] or [passes, batch, outputs...].
      targets: [batch] or [batch, outputs...], exactly the shape of one pass.
      alpha: weight of the consistency term.
      where: examples that count [batch].
      weight: float weight per example [batch].
      label_weight: weight of the squared error against the targets only [batch].
      objective_scale: "sum" or "mean" over passes.
      denominators: see `rdrop_loss`.

    Returns:
      Scalar loss, and the metrics ``ce`` (the squared error per pass) and ``kl`` (the
      squared difference between passes) as `Mean`.

    Raises:
      ValueError: mismatched shapes, including [batch, 1] against [batch].

    Example:
      >>> import jax.numpy as jnp
      >>> y = jnp.array([[1.0, 2.0], [2.0, 2.0]])
      >>> loss, _ = rdrop_regression_loss(y, jnp.array([1.0, 2.0]), alpha=1.0)
      >>> float(loss)
      1.0
    """
    terms = regression_terms(
        predictions, targets, where=where, weight=weight, label_weight=label_weight
    )
    return loss_and_metrics(
        terms, len(predictions), alpha, objective_scale, denominators
    )


@on_any_mesh()
def rdrop_multilabel_loss(
    logits: Float[Array, "passes *positions labels"],
    labels: Num[Array, "*positions labels"] | Bool[Array, "*positions labels"],
    *,
    alpha: float | Float[Array, ""],
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""R-Drop for independent labels: Bernoulli cross entropy and symmetric KL.

    Both are summed over labels and averaged over positions.

    Args:
      logits: [passes, ..., labels].
      labels: 0/1 or probabilities [..., labels].
      alpha: weight of the consistency term.
      where: positions that count [...].
      weight: float weight per position [...].
      label_weight: weight of the cross entropy only [...].
      objective_scale: "sum" or "mean" over passes.
      denominators: see `rdrop_loss`.

    Returns:
      Scalar loss in nats, and the metrics ``ce`` per pass and ``kl`` as `Mean`.

    Raises:
      ValueError: mismatched shapes, or a negative alpha.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.zeros((2, 4, 3))
      >>> loss, _ = rdrop_multilabel_loss(logits, jnp.ones((4, 3)), alpha=1.0)
      >>> round(float(loss), 4)
      4.1589
    """
    terms = multilabel_terms(
        logits, labels, where=where, weight=weight, label_weight=label_weight
    )
    return loss_and_metrics(terms, len(logits), alpha, objective_scale, denominators)
