"""R-Drop for connectionist temporal classification (CTC), and CR-CTC."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer, Num

from rdrop_jax.core import losses
from rdrop_jax.core.label_checks import stacked
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair, mean
from rdrop_jax.core.objective import Denominators, loss_and_metrics
from rdrop_jax.core.options import FRAMES
from rdrop_jax.core.terms import Divergence, mean_over_pairs, position_weights


@on_any_mesh()
def rdrop_ctc_loss(
    logits: Float[Array, "passes batch frames classes"],
    logit_paddings: Num[Array, "batch frames"] | Bool[Array, "batch frames"],
    labels: Integer[Array, "batch labels"],
    label_paddings: Num[Array, "batch labels"] | Bool[Array, "batch labels"],
    *,
    alpha: float | Float[Array, ""],
    blank_id: int = 0,
    frames: str = "sum",
    where: Bool[Array, " batch"] | None = None,
    weight: Float[Array, " batch"] | None = None,
    label_weight: Float[Array, " batch"] | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: str = "targets",
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""R-Drop for sequences of frames without an alignment to their labels.

    :math:`\sum w l \sum_i CTC_i / \sum w l + \alpha \sum w \sum_t s_t / \sum w` over
    sequences, CTC the negative log-likelihood of all alignments (`optax.ctc_loss`) and
    s the half Jeffreys divergence of a frame. With both targets held constant this is
    the loss of CR-CTC (arXiv 2410.05101), whose weight 0.2 is ``alpha=0.4`` here.

    Args:
      logits: [passes, batch, frames, classes], with a class for the blank.
      logit_paddings: padding of the frames [batch, frames], 1 or True for padding.
      labels: class ids [batch, labels], padded on the right.
      label_paddings: padding of the labels [batch, labels], 1 or True for padding.
      alpha: weight of the consistency term.
      blank_id: class id of the blank.
      frames: "sum" adds the divergence over the frames of a sequence, as the CTC loss
        does, and averages over sequences. "mean" averages it over all frames.
      where: sequences that count [batch]; masked ones may contain anything.
      weight: float weight per sequence [batch].
      label_weight: weight of the CTC loss only [batch]; 0 for unlabelled sequences.
      divergence: see `rdrop_jax.rdrop_loss`.
      stop_gradient: "targets", as in CR-CTC, or "none"; see `rdrop_jax.rdrop_loss`.
      objective_scale: "sum", or "mean" to divide by the number of passes.
      denominators: see `rdrop_jax.rdrop_loss`.

    Returns:
      Scalar loss in nats, and the metrics ``ce`` (the CTC loss per pass and sequence),
      ``kl`` (the divergence per sequence, or per frame for ``frames="mean"``) and
      ``infeasible``, as `Mean`. The latter is the fraction of labelled sequences with
      fewer frames than their labels need, one each and a blank between equal
      neighbours. They have no alignment: they count in the divergence alone.

    Raises:
      ValueError: mismatched shapes or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.zeros((2, 1, 4, 3)).at[0, 0, :, 1].set(1.0)
      >>> labels, no_padding = jnp.array([[1, 2]]), jnp.zeros((1, 2))
      >>> loss, metrics = rdrop_ctc_loss(
      ...     logits, jnp.zeros((1, 4)), labels, no_padding, alpha=0.4
      ... )
      >>> round(float(loss), 4), float(metrics["infeasible"])
      (3.7449, 0.0)
    """
    logits, labels = stacked("logits", logits), jnp.asarray(labels)
    padded, no_label = (jnp.asarray(x) != 0 for x in (logit_paddings, label_paddings))
    _check(logits, padded, labels, no_label, blank_id, frames)
    labels = labels.astype(int)  # the number of classes may exceed their type
    weights = position_weights(logits.shape[1:2], where, weight, label_weight)
    feasible = _frames_needed(labels, no_label) <= jnp.sum(~padded, axis=1)
    labelled = weights.ce
    weights = Pair(jnp.where(feasible, labelled, 0.0), weights.kl)
    ce = sum(
        _ctc(z, padded, labels, no_label, weights.ce != 0, blank_id) for z in logits
    )
    kl = mean_over_pairs(
        logits,
        jnp.where(padded, 0.0, weights.kl[:, None]),
        divergence,
        stop_gradient,
    )
    if frames == "sum":
        kl = Mean(kl.total, jnp.sum(weights.kl))
    loss, metrics = loss_and_metrics(
        Pair(mean(jnp.asarray(ce), weight=weights.ce), kl),
        len(logits),
        alpha,
        objective_scale,
        denominators,
    )
    infeasible = mean((~feasible).astype(labelled.dtype), weight=labelled)
    return loss, metrics | {"infeasible": jax.lax.stop_gradient(infeasible)}


def _frames_needed(labels: Array, no_label: Array) -> Integer[Array, " batch"]:
    """Return the number of labels and of equal neighbours, which need a blank."""
    repeated = (labels[:, 1:] == labels[:, :-1]) & ~no_label[:, 1:]
    return jnp.sum(~no_label, axis=1) + jnp.sum(repeated, axis=1)


def _ctc(
    logits: Float[Array, "batch frames classes"],
    padded: Bool[Array, "batch frames"],
    labels: Integer[Array, "batch labels"],
    no_label: Bool[Array, "batch labels"],
    keep: Bool[Array, " batch"],
    blank_id: int,
) -> Float[Array, " batch"]:
    """Return the CTC loss per sequence; NaN for a label that is no class."""
    z = losses.at_least_float32(losses.clear(keep[:, None] & ~padded, logits))
    known = (labels >= 0) & (labels < z.shape[-1]) & (labels != blank_id)
    valid = jnp.where(jnp.all(known | no_label, axis=1), 1.0, jnp.nan)
    ctc = optax.ctc_loss(
        jnp.maximum(z, losses.IMPOSSIBLE),  # optax multiplies log-probabilities by 0
        padded.astype(z.dtype),
        jnp.where(no_label, blank_id, labels),
        no_label.astype(z.dtype),
        blank_id=blank_id,
        # Of the logits: in `jax.shard_map` the loop's carry must have their type.
        log_epsilon=jnp.full_like(jnp.sum(z), -1e5),
    )
    return losses.clear(keep, ctc * valid)


def _check(
    logits: Array,
    padded: Array,
    labels: Array,
    no_label: Array,
    blank_id: int,
    frames: str,
) -> None:
    if logits.ndim != 4:
        raise ValueError(
            "logits: expected [passes, batch, frames, classes], found shape "
            f"{logits.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 2:
        raise ValueError(
            f"labels: expected class ids [batch, labels], found {labels.dtype} "
            f"{labels.shape}"
        )
    for name, found, expected in (
        ("logit_paddings", padded.shape, logits.shape[1:3]),
        ("labels", labels.shape[:1], logits.shape[1:2]),
        ("label_paddings", no_label.shape, labels.shape),
    ):
        if found != expected:
            raise ValueError(f"{name}: expected shape {expected}, found {found}")
    if not 0 <= blank_id < logits.shape[-1]:
        raise ValueError(
            f"blank_id: expected a class id below {logits.shape[-1]}, found {blank_id}"
        )
    if frames not in FRAMES:
        raise ValueError(f"frames: expected one of {FRAMES}, found {frames!r}")
