"""Bootstrap confidence intervals over the examples of a split."""

import numpy as np
from jaxtyping import Float
from scipy import stats

_AT_ONCE = 2**22  # maximum number of values of resamples in memory: 32 MiB


def mean_interval(
    values: Float[np.ndarray, " examples"], resamples: int
) -> tuple[float, float]:
    """Compute the 95 % percentile bootstrap interval of a mean.

    Args:
      values: one value per example.
      resamples: number of resamples; they are the same at every call.

    Returns:
      Lower and upper bound.

    Example:
      >>> low, high = mean_interval(np.array([0.0, 1.0] * 50), 1000)
      >>> low < 0.45, high > 0.55
      (True, True)
    """
    if len(values) == 1:  # scipy requires at least two
        return float(values[0]), float(values[0])
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(values)),
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
