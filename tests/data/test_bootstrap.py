"""Bootstrap intervals of a mean."""

import numpy as np
import pytest

from rdrop_jax.data.bootstrap import mean_interval


def test_intervals_contain_the_mean_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        low, high = mean_interval(rng.normal(5.0, 2.0, 60), 200)
        hits += low <= 5.0 <= high
    assert 88 <= hits <= 99


@pytest.mark.parametrize("count", [2, 300, 5000])
def test_intervals_are_percentiles_of_resampled_means(count):
    """The same draws as one resample at a time, whatever the batches in memory."""
    values, rng = np.random.default_rng(1).normal(size=count), np.random.default_rng(0)
    means = [values[rng.integers(0, count, count)].mean() for _ in range(1000)]
    expected = np.percentile(means, [2.5, 97.5])
    assert mean_interval(values, 1000) == pytest.approx(tuple(expected), rel=1e-12)
    assert mean_interval(values, 1000) == mean_interval(values, 1000)


def test_an_interval_of_one_value_is_that_value():
    assert mean_interval(np.array([0.5]), 1000) == (0.5, 0.5)
