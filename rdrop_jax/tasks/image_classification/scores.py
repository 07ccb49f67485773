"""Accuracy, cross entropy and calibration error, accumulated over batches."""

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.core.losses import softmax_cross_entropy

BINS = 15
TOP = 5
NAMES = ("accuracy", "top5", "loss", "ece")


def sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    where: Bool[Array, " batch"],
) -> dict[str, Array]:
    """Compute the partial sums of one batch for `scores`; can be jitted.

    Args:
      logits: logits of one forward pass without dropout.
      labels: class ids.
      where: mask of valid rows (True keeps).

    Returns:
      ``examples``, ``hits``, ``top5`` and ``loss`` as scalars; ``bin_rows``,
      ``bin_hits`` and ``bin_confidence`` per bin of confidence [15].
    """
    hit = (jnp.argmax(logits, axis=-1) == labels) & where
    # Number of classes ranked above the label; ties go to the lower class id.
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    lower = jnp.arange(logits.shape[-1])[None] < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & lower), axis=-1)
    top = (rank < TOP) & ~jnp.isnan(own[:, 0])
    confidence = jnp.max(jax.nn.softmax(logits.astype(jnp.float32), axis=-1), axis=-1)
    number = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    inside = (number[:, None] == jnp.arange(BINS)[None]) & where[:, None]
    return {
        "examples": jnp.sum(where),
        "hits": jnp.sum(hit),
        "top5": jnp.sum(top & where),
        "loss": jnp.sum(softmax_cross_entropy(logits, labels, where=where)),
        "bin_rows": jnp.sum(inside, axis=0),
        "bin_hits": jnp.sum(inside & hit[:, None], axis=0),
        "bin_confidence": jnp.sum(jnp.where(inside, confidence[:, None], 0.0), axis=0),
    }


def scores(parts: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Compute the scores of a split from the sums of its batches.

    The expected calibration error (Guo et al., 2017) groups rows into 15 bins of
    equal width by confidence, the highest class probability; bin b holds confidences
    in (b / 15, (b + 1) / 15]. With n rows, n_b of them in bin b,

        ece = sum_b (n_b / n) |accuracy of bin b - mean confidence of bin b|

    Args:
      parts: outputs of `sums` for every batch, on the host.

    Returns:
      ``accuracy``; ``top5``, the share of rows whose label is among the five most
      probable; ``loss``, the mean cross entropy in nats; ``ece``; ``examples``. All
      but ``examples`` are NaN if a row has NaN logits.
    """
    total: dict[str, np.ndarray] = {}
    for part in parts:
        for name, value in part.items():
            wide = np.asarray(
                value,
                np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64,
            )
            total[name] = total[name] + wide if name in total else wide
    rows = int(total["examples"])
    if np.isnan(total["loss"]):  # some logits are NaN
        return dict.fromkeys(NAMES, math.nan) | {"examples": rows}
    gap = np.abs(total["bin_hits"] - total["bin_confidence"])
    return {
        "accuracy": int(total["hits"]) / rows,
        "top5": int(total["top5"]) / rows,
        "loss": float(total["loss"]) / rows,
        "ece": float(gap.sum()) / rows,
        "examples": rows,
    }
