"""Cross-entropy and consistency terms of R-Drop, each a total with its weight."""

from collections.abc import Callable
from itertools import combinations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num

from rdrop_jax.core import losses
from rdrop_jax.core.label_checks import are_class_ids, check_one_pass, stacked
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair, mean
from rdrop_jax.core.options import STOP_GRADIENTS

Divergence = str | Callable[[Array, Array], Array]

_DIVERGENCES: dict[str, Callable[..., Array]] = {
    "symmetric_kl": losses.symmetric_kl,
    "forward_kl": losses.kl_divergence,
    "reverse_kl": lambda a, b, where: losses.kl_divergence(b, a, where=where),
    "js": losses.js_divergence,
    "squared": losses.squared_difference,
}


def _kl_from_fixed(p: Array, q: Array, where: Array) -> Array:
    return losses.kl_divergence(jax.lax.stop_gradient(p), q, where=where)


# The target of KL(p || q) is p, as in distillation. The other divergences have no
# target: with p and q fixed, the gradient of JS through its mixture is 0.
_TARGETS_FIXED: dict[str, Callable[..., Array]] = {
    "symmetric_kl": lambda a, b, where: (
        0.5 * (_kl_from_fixed(a, b, where) + _kl_from_fixed(b, a, where))
    ),
    "forward_kl": _kl_from_fixed,
    "reverse_kl": lambda a, b, where: _kl_from_fixed(b, a, where),
}


def _divergence(divergence: Divergence, stop_gradient: str) -> Callable[..., Array]:
    if stop_gradient not in STOP_GRADIENTS:
        raise ValueError(
            f"stop_gradient must be 'none' or 'targets': found {stop_gradient!r}"
        )
    if callable(divergence):
        if stop_gradient == "targets":
            raise ValueError(
                "stop_gradient='targets' needs a named divergence; a callable applies "
                "jax.lax.stop_gradient itself"
            )
        chosen = divergence

        # Zero masked inputs before the call and masked results after it.
        def cleared(a: Array, b: Array, where: Array | None) -> Array:
            a, b = (losses.clear(where, losses.at_least_float32(x)) for x in (a, b))
            return losses.clear(where, losses.at_least_float32(chosen(a, b)))

        return cleared
    table = _DIVERGENCES if stop_gradient == "none" else _TARGETS_FIXED
    if divergence not in table:
        raise ValueError(
            f"divergence must be one of {tuple(table)} (with stop_gradient="
            f"{stop_gradient!r}) or a callable: found {divergence!r}"
        )
    return table[divergence]


def position_weights(
    shape: tuple[int, ...],
    where: Array | None,
    weight: Array | None,
    label_weight: Array | None,
) -> Pair:
    """Return weights ``w * l`` of cross entropy and ``w`` of the consistency term."""
    where, weight, label_weight = (
        None if x is None else jnp.asarray(x) for x in (where, weight, label_weight)
    )
    given = {"where": where, "weight": weight, "label_weight": label_weight}
    for name, value in given.items():
        if value is not None and value.shape != shape:
            raise ValueError(
                f"{name} must have one entry per position, shape {shape}: found "
                f"{value.shape}"
            )
    if where is not None and where.dtype != jnp.bool_:
        raise ValueError(
            f"where must be boolean (True keeps): found {where.dtype}; float weights "
            "go in weight="
        )
    one = jnp.ones(shape, jnp.float32)
    w = one if weight is None else losses.at_least_float32(weight)
    label_w = one if label_weight is None else losses.at_least_float32(label_weight)
    w = losses.clear(where, w)
    return Pair(w * losses.clear(w != 0, label_w), w)


def _mean_over_pairs(
    outputs: Array, weight: Array, consistency: Callable[[Array, Array, Array], Array]
) -> Mean:
    """Return the weighted mean of the consistency term over pairs of passes."""
    pairs = [consistency(a, b, weight != 0) for a, b in combinations(outputs, 2)]
    kl = sum(pairs) / len(pairs) if pairs else jnp.zeros_like(weight)
    return mean(jnp.asarray(kl), weight=weight)


def mean_over_pairs(
    logits: Float[Array, "passes *positions classes"],
    weight: Float[Array, "*positions"],
    divergence: Divergence,
    stop_gradient: str,
) -> Mean:
    """Return the weighted mean of a divergence over pairs of passes.

    Args:
      logits: outputs of all passes.
      weight: weight per position; 0 excludes the position.
      divergence: see `rdrop_jax.rdrop_loss`.
      stop_gradient: see `rdrop_jax.rdrop_loss`.
    """
    distance = _divergence(divergence, stop_gradient)
    return _mean_over_pairs(
        logits, weight, lambda a, b, keep: distance(a, b, where=keep)
    )


def _terms(
    outputs: Array,
    weights: Pair,
    cross_entropy: Callable[[Array, Array], Array],
    consistency: Callable[[Array, Array, Array], Array],
) -> Pair:
    ce = sum(cross_entropy(z, weights.ce != 0) for z in outputs)
    return Pair(
        mean(jnp.asarray(ce), weight=weights.ce),
        _mean_over_pairs(outputs, weights.kl, consistency),
    )


@on_any_mesh()
def rdrop_terms(
    logits: Float[Array, "passes *positions classes"],
    labels: Integer[Array, "*positions"] | Float[Array, "*positions classes"],
    *,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: str = "none",
) -> Pair:
    """Compute the two terms of the objective before alpha; both carry gradients.

    Args: see `rdrop_jax.rdrop_loss`.

    Returns:
      ``(ce, kl)``, two `Mean`: cross entropy summed over passes with its weight
      ``sum(w l)``, and the consistency term with ``sum(w)``. The weights depend only on
      the masks.

    Raises:
      ValueError: see `rdrop_jax.rdrop_loss`.
    """
    logits, labels = stacked("logits", logits), jnp.asarray(labels)
    are_class_ids(labels, logits, in_passes=True)
    distance = _divergence(divergence, stop_gradient)
    return _terms(
        logits,
        position_weights(logits.shape[1:-1], where, weight, label_weight),
        lambda z, keep: losses.softmax_cross_entropy(
            z, labels, label_smoothing=label_smoothing, smoothing=smoothing, where=keep
        ),
        lambda a, b, keep: distance(a, b, where=keep),
    )


@on_any_mesh()
def regression_terms(
    predictions: Float[Array, "passes batch *outputs"],
    targets: Num[Array, "batch *outputs"],
    *,
    where: Bool[Array, " batch"] | None = None,
    weight: Float[Array, " batch"] | None = None,
    label_weight: Float[Array, " batch"] | None = None,
) -> Pair:
    """Compute `rdrop_terms` for regression; see `rdrop_regression_loss`."""
    shape = jnp.shape(targets)
    predictions = stacked("predictions", predictions, "targets", shape)
    check_one_pass("predictions", predictions, "targets", shape)
    return _terms(
        predictions,
        position_weights(predictions.shape[1:2], where, weight, label_weight),
        lambda y, keep: losses.squared_error(y, targets, where=keep),
        lambda a, b, keep: losses.squared_error(a, b, where=keep),
    )


@on_any_mesh()
def multilabel_terms(
    logits: Float[Array, "passes *positions labels"],
    labels: Num[Array, "*positions labels"] | Bool[Array, "*positions labels"],
    *,
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
) -> Pair:
    """Compute `rdrop_terms` for multi-label tasks; see `rdrop_multilabel_loss`."""
    logits = stacked("logits", logits)
    check_one_pass("logits", logits, "labels", jnp.shape(labels))
    return _terms(
        logits,
        position_weights(logits.shape[1:-1], where, weight, label_weight),
        lambda z, keep: losses.bernoulli_cross_entropy(z, labels, where=keep),
        lambda a, b, keep: losses.bernoulli_symmetric_kl(a, b, where=keep),
    )
