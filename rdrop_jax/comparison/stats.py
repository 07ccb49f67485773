"""Paired differences over seeds and over test examples. Needs no jax."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

LEVEL = 0.95
MIN_SEEDS = 6  # below, no sign-flip p can reach 0.05: 2 / 2**5 is 0.0625
_EXACT = 2**16  # up to so many sign flips are all tried
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Paired:
    """An arm minus another, seed by seed.

    Attributes:
      values: difference of each seed.
      mean: of the values.
      sd: of the values; NaN for one seed.
      low: lower end of the t interval of the mean; NaN for one seed.
      high: its upper end.
      p: two-sided, by flipping signs.
      smallest_p: the smallest that this number of seeds can reach.
    """

    values: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    p: float
    smallest_p: float


def paired(a: Float[np.ndarray, " seeds"], b: Float[np.ndarray, " seeds"]) -> Paired:
    """What can be said of ``a - b``, both in the order of the seeds."""
    values = a - b
    low, high = t_interval(values)
    return Paired(
        values=tuple(values.tolist()),
        mean=float(values.mean()),
        sd=sd(values),
        low=float(low),
        high=float(high),
        p=float(sign_flip_p(values)),
        smallest_p=2.0 / 2 ** len(values) if len(values) > 1 else 1.0,
    )


def sd(values: Float[np.ndarray, " seeds"]) -> float:
    """Sample standard deviation; NaN for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def t_interval(
    differences: Float[np.ndarray, "*experiments seeds"], level: float = LEVEL
) -> tuple[Float[np.ndarray, "*experiments"], Float[np.ndarray, "*experiments"]]:
    """``mean -+ t * sd / sqrt(seeds)``, t of ``seeds - 1`` degrees of freedom.

    Args:
      differences: of pairs, seeds on the last axis.
      level: how often such intervals cover the mean of all seeds.

    Returns:
      Lower and upper ends; NaN for a single seed.
    """
    count = differences.shape[-1]
    mean = np.asarray(differences.mean(axis=-1))
    if count < 2:
        return np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    error = differences.std(axis=-1, ddof=1) / np.sqrt(count)
    half = stats.t.ppf((1 + level) / 2, count - 1) * error
    return np.asarray(mean - half), np.asarray(mean + half)


def sign_flip_p(
    differences: Float[np.ndarray, "*experiments seeds"],
) -> Float[np.ndarray, "*experiments"]:
    """Share of sign flips with a mean at least as far from 0, two-sided.

    If both arms were the same, each difference could as well have had the other sign.
    All ``2**seeds`` flips are tried up to 16 seeds, else as many at random.

    Args:
      differences: of pairs, seeds on the last axis.

    Returns:
      p, at least ``2 / 2**seeds``; 1 for a single seed.
    """
    if differences.shape[-1] < 2:
        return np.ones(differences.shape[:-1])
    found = stats.permutation_test(
        (differences,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_EXACT,
        axis=-1,
        batch=256,
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.pvalue)


def bootstrap_interval(
    differences: Float[np.ndarray, " examples"],
    level: float = LEVEL,
    resamples: int = _RESAMPLES,
) -> tuple[float, float]:
    """Percentile interval of the mean over examples drawn with replacement.

    The models stay as they are: this is the chance of the test set alone.

    Args:
      differences: of each test example, averaged over seeds.
      level: of the interval.
      resamples: how many test sets to draw, the same at every call.

    Returns:
      Lower and upper end.
    """
    rng = np.random.default_rng(0)
    count = len(differences)
    at_once = max(1, 2**22 // count)
    means = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(count, size=(min(at_once, resamples - start), count))
        means.append(differences[drawn].mean(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def verdict(found: Paired, *, higher_is_better: bool) -> str:
    """One of "helps", "hurts", "cannot be told"; nothing below 6 seeds.

    A word other than the last needs both: an interval without 0, and p of at most 0.05.
    """
    if len(found.values) < MIN_SEEDS:
        return ""
    if found.low <= 0 <= found.high or found.p > 1 - LEVEL + 1e-12:
        return "cannot be told"
    return "helps" if (found.mean > 0) == higher_is_better else "hurts"
