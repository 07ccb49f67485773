"""The consistency term alone, for losses that the library does not have."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rdrop_jax.core.kernels.class_ids import softmax_objective
from rdrop_jax.core.kernels.softmax import SoftmaxOptions
from rdrop_jax.core.label_checks import stacked
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair
from rdrop_jax.core.terms import Divergence, mean_over_pairs, position_weights


@on_any_mesh()
def consistency(
    logits: Float[Array, "passes *positions classes"],
    *,
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: str = "none",
) -> Mean:
    r"""Consistency term of R-Drop, to add to your own loss.

    :math:`\sum w s / \sum w` with :math:`s = \mathrm{mean}_{i<j} \tfrac12 (KL(p_i \|
    p_j) + KL(p_j \| p_i))`: Eq. 2 of arXiv 2106.14448. The result carries gradients.
    Add ``alpha * consistency(logits).compute()`` to the sum of your task loss over
    passes. For outputs that are no logits, give ``divergence`` as a function. For two
    passes and the default divergence, the gradient is computed together with the value,
    in chunks of rows.

    Args:
      logits: outputs of at least 2 passes [passes, ..., classes], as `forward_passes`
        returns them.
      where: positions that count [...]; masked positions may contain anything.
      weight: float weight per position [...].
      divergence: see `rdrop_jax.rdrop_loss`. A function of two arrays
        [..., classes] returns one number per position [...].
      stop_gradient: "none" or "targets", see `rdrop_jax.rdrop_loss`.

    Returns:
      Mean over positions, in nats for the KL divergences, with total and weight, so
      that means of microbatches and devices can be merged.

    Raises:
      ValueError: fewer than two passes, mismatched shapes, or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]])
      >>> f"{consistency(logits):.4f}"
      '0.0749'
    """
    logits = stacked("logits", logits)
    if len(logits) < 2:
        raise ValueError(
            f"logits: expected at least 2 passes on axis 0, found shape {logits.shape}"
        )
    w = position_weights(logits.shape[1:-1], where, weight, None).kl
    if len(logits) > 2 or divergence != "symmetric_kl" or stop_gradient != "none":
        return mean_over_pairs(logits, w, divergence, stop_gradient)
    w = w.astype(jnp.promote_types(logits.dtype, jnp.float32))
    rows = w.reshape(-1)
    unlabelled = jnp.zeros_like(rows)
    total, _ = softmax_objective(
        logits.reshape(2, -1, logits.shape[-1]),
        unlabelled.astype(int),
        Pair(unlabelled, rows),
        Pair(jnp.zeros((), w.dtype), jnp.ones((), w.dtype)),
        SoftmaxOptions(0.0, "uniform"),
    )
    return Mean(total, jnp.sum(w))
