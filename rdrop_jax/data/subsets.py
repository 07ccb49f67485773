"""Which rows a run with few labels trains on."""

import numpy as np
from jaxtyping import Int

from rdrop_jax.errors import InputError


def balanced_subset(
    labels: Int[np.ndarray, " rows"], count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Rows drawn at random, as many of each class as there are.

    Classes differ by one row at most, as long as each has rows left. A smaller subset
    of the same seed is part of a larger one.

    Args:
      labels: class ids of all rows.
      count: rows to draw.
      seed: another seed draws other rows.

    Returns:
      Row numbers, ascending.

    Raises:
      InputError: a count that cannot be drawn.
    """
    if not 0 < count <= len(labels):
        raise InputError(
            f"data.labelled: expected 1 to {len(labels)} training rows, or 0 for all, "
            f"found {count}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # How often the class of each row came before it.
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels[order] == label
        rank[of_class] = np.arange(of_class.sum())
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])


def others(
    rows: int, labelled: Int[np.ndarray, " labelled"], count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Further rows drawn at random, without a look at their labels.

    Args:
      rows: how many there are.
      labelled: those that are taken already.
      count: rows to draw.
      seed: another seed draws other rows.

    Returns:
      Row numbers, ascending.

    Raises:
      InputError: a count that cannot be drawn.
    """
    left = np.setdiff1d(np.arange(rows), labelled)
    if not 0 <= count <= len(left):
        raise InputError(
            f"data.unlabelled: expected 0 to {len(left)} rows besides the labelled "
            f"ones, found {count}"
        )
    return np.sort(np.random.default_rng([seed, 1]).permutation(left)[:count])
