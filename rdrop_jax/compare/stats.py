"""Paired differences over seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
MIN_SEEDS = 6  # with 5 seeds the smallest sign-flip p is 2 / 2**5 = 0.0625, above 0.05
_EXACT = 2**16  # maximum number of sign flips for an exact test
RESAMPLES = 10_000  # of the test set


@dataclass(frozen=True)
class Paired:
    """Paired differences between two arms.

    Attributes:
      values: difference of each seed.
      mean: mean of the values.
      sd: sample standard deviation of the values; NaN for one seed.
      low: lower end of the t interval of the mean; NaN for one seed.
      high: upper end of that interval; NaN for one seed.
      p: two-sided p value of the sign-flip test.
      smallest_p: minimum p value for this number of seeds.
    """

    values: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    p: float
    smallest_p: float


def paired(a: Float[np.ndarray, " seeds"], b: Float[np.ndarray, " seeds"]) -> Paired:
    """Compute the statistics of ``a - b``, both in the order of the seeds."""
    values = a - b
    low, high = t_interval(values)
    return Paired(
        values=tuple(values.tolist()),
        mean=float(values.mean()),
        sd=sd(values),
        low=float(low),
        high=float(high),
        p=float(sign_flip_p(values)),
        smallest_p=_smallest_p(len(values)),
    )


def _smallest_p(seeds: int) -> float:
    """Return the minimum of `sign_flip_p`."""
    if seeds < 2:
        return 1.0
    # scipy counts the observed signs among random flips; the test has two sides.
    return 2.0 / min(2**seeds, _EXACT + 1)


def sd(values: Float[np.ndarray, " seeds"]) -> float:
    """Return the sample standard deviation; NaN for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def t_interval(
    differences: Float[np.ndarray, "*experiments seeds"],
) -> tuple[Float[np.ndarray, "*experiments"], Float[np.ndarray, "*experiments"]]:
    """Compute ``mean -+ t * sd / sqrt(seeds)`` with ``seeds - 1`` degrees of freedom.

    Args:
      differences: paired differences, seeds on the last axis.

    Returns:
      Lower and upper ends; NaN for a single seed.
    """
    count = differences.shape[-1]
    mean = np.asarray(differences.mean(axis=-1))
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    error = differences.std(axis=-1, ddof=1) / np.sqrt(count)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * error
    return np.asarray(mean - half), np.asarray(mean + half)


def sign_flip_p(
    differences: Float[np.ndarray, "*experiments seeds"],
) -> Float[np.ndarray, "*experiments"]:
    """Compute the two-sided p value of a sign-flip (paired permutation) test.

    Under the null hypothesis that the arms are equal, the sign of each difference is
    random. Up to 16 seeds all ``2**seeds`` flips are tried, else ``2**16`` random ones.

    Args:
      differences: paired differences, seeds on the last axis.

    Returns:
      p, at least `Paired.smallest_p`; 1 for a single seed.
    """
    if differences.shape[-1] < 2:
        return np.ones(differences.shape[:-1])
    # Rounding makes flips with equal means tie, as they do in exact arithmetic.
    scale = np.abs(differences).mean(axis=-1, keepdims=True)
    found = stats.permutation_test(
        (differences / np.where(scale == 0, 1.0, scale),),
        lambda x, axis: np.round(np.mean(x, axis=axis), 9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_EXACT,
        axis=-1,
        batch=256,
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.pvalue)


def verdict(diff: Mapping[str, Any], *, higher_is_better: bool) -> str:
    """Return "helps", "hurts" or "inconclusive"; "" below 6 seeds.

    "helps" and "hurts" require both an interval that excludes 0 and p at most 0.05.

    Args:
      diff: fields of `Paired`.
      higher_is_better: True if a higher score is better.
    """
    if len(diff["values"]) < MIN_SEEDS:
        return ""
    excludes_0 = diff["low"] > 0 or diff["high"] < 0  # False for NaN
    if not excludes_0 or diff["p"] > 1 - LEVEL + 1e-12:
        return "inconclusive"
    return "helps" if (diff["mean"] > 0) == higher_is_better else "hurts"
