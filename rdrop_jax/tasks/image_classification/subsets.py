"""Labelled and unlabelled training subsets for runs with few labels."""

import numpy as np
from jaxtyping import Int

from rdrop_jax.errors import InputError


def balanced_subset(
    labels: Int[np.ndarray, " rows"], count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Draw a class-balanced random subset of rows.

    Class counts differ by at most one while every class has rows left. With the same
    seed, a smaller subset is contained in a larger one.

    Args:
      labels: class ids of all rows.
      count: number of rows to draw.
      seed: seed of the draw.

    Returns:
      Row numbers, ascending.

    Raises:
      InputError: ``count`` is out of range.
    """
    if not 0 < count <= len(labels):
        raise InputError(
            f"data.labelled: expected 1 to {len(labels)} training rows, or 0 for all, "
            f"found {count}"
        )
    order = np.random.default_rng(seed).permutation(len(labels))
    # Rank of each row within its class.
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = labels[order] == label
        rank[of_class] = np.arange(of_class.sum())
    return np.sort(order[np.argsort(rank, kind="stable")[:count]])


def others(
    rows: int, labelled: Int[np.ndarray, " labelled"], count: int, seed: int
) -> Int[np.ndarray, " count"]:
    """Draw further rows at random, regardless of their labels.

    Args:
      rows: number of rows.
      labelled: rows to exclude.
      count: number of rows to draw.
      seed: seed of the draw.

    Returns:
      Row numbers, ascending.

    Raises:
      InputError: ``count`` is out of range.
    """
    left = np.setdiff1d(np.arange(rows), labelled)
    if not 0 <= count <= len(left):
        raise InputError(
            f"data.unlabelled: expected 0 to {len(left)} rows, the number without the "
            f"labelled rows, found {count}"
        )
    return np.sort(np.random.default_rng([seed, 1]).permutation(left)[:count])
