"""Cross-entropy and consistency terms of R-Drop, each a total with its weight."""

from collections.abc import Callable
from itertools import combinations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num

from rdrop_jax.core import divergences, losses
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, mean

Divergence = str | Callable[[Array, Array], Array]

_DIVERGENCES: dict[str, Callable[..., Array]] = {
    "symmetric_kl": divergences.symmetric_kl,
    "forward_kl": divergences.kl_divergence,
    "reverse_kl": lambda a, b, where: divergences.kl_divergence(b, a, where=where),
    "js": divergences.js_divergence,
    "squared": divergences.squared_difference,
}


def _kl_from_fixed(p: Array, q: Array, where: Array) -> Array:
    return divergences.kl_divergence(jax.lax.stop_gradient(p), q, where=where)


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
    if stop_gradient not in ("none", "targets"):
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
        return lambda a, b, where: losses.clear(
            where, chosen(losses.clear(where, a), losses.clear(where, b))
        )
    table = _DIVERGENCES if stop_gradient == "none" else _TARGETS_FIXED
    if divergence not in table:
        raise ValueError(
            f"divergence must be one of {tuple(table)} (with stop_gradient="
            f"{stop_gradient!r}) or a callable: found {divergence!r}"
        )
    return table[divergence]


def reshape_hint(
    name: str, outputs: tuple[int, ...], labels: str, one_pass: tuple[int, ...]
) -> str:
    """Return a hint if passes are concatenated along the batch, else an empty string.

    Args:
      name: name of the outputs.
      outputs: shape of the outputs.
      labels: name of the labels.
      one_pass: shape of the labels, without the class axis if only outputs have one.

    Returns:
      A sentence with a leading space.
    """
    rank = len(one_pass)
    if rank < 1 or outputs[1:rank] != one_pass[1:]:
        return ""
    rest = "".join(f", {n}" for n in outputs[1:])
    if outputs[0] == 2 * one_pass[0]:
        return (
            f" {name} has no axis of passes. For rows [x; x] pass "
            f"{name}.reshape(2, {one_pass[0]}{rest})."
        )
    if outputs[0] == one_pass[0] and len(outputs) - rank in (0, 1):
        half = f"{one_pass[0] // 2}" if one_pass[0] % 2 == 0 else "batch"
        return (
            f" {name} has no axis of passes. For rows [x; x] and labels [y; y] pass "
            f"{name}.reshape(2, {half}{rest}) and {labels}[:{half}]; for one pass "
            f"{name}[None]."
        )
    return ""


def stacked(
    name: str, outputs: Array, labels: str = "labels", one_pass: tuple[int, ...] = ()
) -> Array:
    """Check that outputs are stacked over passes; the error may suggest a reshape."""
    outputs = jnp.asarray(outputs)
    if outputs.ndim < 2 or outputs.shape[0] < 1:
        raise ValueError(
            f"{name} must be stacked over passes on axis 0, [passes, ...] with at least"
            f" 2 axes: found shape {outputs.shape}."
            + reshape_hint(name, outputs.shape, labels, one_pass)
        )
    return outputs


def takes_class_ids(labels: Array, logits: Array) -> bool:
    """Check label shapes for stacked logits; return True if labels are class ids."""
    ids = jnp.issubdtype(labels.dtype, jnp.integer)
    one_pass = logits.shape[1:-1] if ids else logits.shape[1:]
    if labels.shape != one_pass:
        kind = "class ids" if ids else "probabilities"
        raise ValueError(
            f"labels ({kind}) must have the shape {one_pass} of one pass of logits, "
            f"[passes, ..., classes]: found labels {labels.shape}, logits "
            f"{logits.shape}."
            + reshape_hint("logits", logits.shape, "labels", labels.shape)
        )
    return ids


def _check_one_pass(
    name: str, outputs: Array, labels: str, shape: tuple[int, ...]
) -> None:
    """Raise ValueError if labels do not have the shape of one pass."""
    if outputs.shape[1:] != shape:
        raise ValueError(
            f"{labels} must have the same shape as one pass of {name}, "
            f"[passes, *{labels}]: found {outputs.shape[1:]} and {shape}."
            + reshape_hint(name, outputs.shape, labels, shape)
        )


def position_weights(
    shape: tuple[int, ...],
    where: Array | None,
    weight: Array | None,
    label_weight: Array | None,
) -> tuple[Array, Array]:
    """Return weights ``w`` of the consistency term and ``w * l`` of cross entropy."""
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
    return w, w * losses.clear(w != 0, label_w)


def _terms(
    outputs: Array,
    shape: tuple[int, ...],
    weights: tuple[Array, Array],
    cross_entropy: Callable[[Array, Array], Array],
    consistency: Callable[[Array, Array, Array], Array],
) -> tuple[Mean, Mean]:
    w, label_w = weights
    counts, labelled = w != 0, label_w != 0
    ce = sum(cross_entropy(z, labelled) for z in outputs)
    pairs = [consistency(a, b, counts) for a, b in combinations(outputs, 2)]
    s = sum(pairs) / len(pairs) if pairs else jnp.zeros(shape, w.dtype)
    return mean(jnp.asarray(ce), weight=label_w), mean(jnp.asarray(s), weight=w)


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
) -> tuple[Mean, Mean]:
    """Compute the two terms of the objective before alpha; both carry gradients.

    Args: see `rdrop_jax.rdrop_loss`.

    Returns:
      ``(ce, s)``, the cross entropy summed over passes with its weight ``sum(w l)``
      and the consistency term with ``sum(w)``. The weights depend only on the masks.

    Raises:
      ValueError: see `rdrop_jax.rdrop_loss`.
    """
    logits, labels = stacked("logits", logits), jnp.asarray(labels)
    takes_class_ids(labels, logits)
    positions = logits.shape[1:-1]
    distance = _divergence(divergence, stop_gradient)
    return _terms(
        logits,
        positions,
        position_weights(positions, where, weight, label_weight),
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
) -> tuple[Mean, Mean]:
    """Compute `rdrop_terms` for regression; see `rdrop_regression_loss`."""
    shape = jnp.shape(targets)
    predictions = stacked("predictions", predictions, "targets", shape)
    _check_one_pass("predictions", predictions, "targets", shape)
    positions = predictions.shape[1:2]
    return _terms(
        predictions,
        positions,
        position_weights(positions, where, weight, label_weight),
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
) -> tuple[Mean, Mean]:
    """Compute `rdrop_terms` for multi-label tasks; see `rdrop_multilabel_loss`."""
    logits = stacked("logits", logits)
    _check_one_pass("logits", logits, "labels", jnp.shape(labels))
    positions = logits.shape[1:-1]
    return _terms(
        logits,
        positions,
        position_weights(positions, where, weight, label_weight),
        lambda z, keep: losses.bernoulli_cross_entropy(z, labels, where=keep),
        lambda a, b, keep: divergences.bernoulli_symmetric_kl(a, b, where=keep),
    )
