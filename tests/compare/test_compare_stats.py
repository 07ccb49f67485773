"""Intervals and p values, on simulated experiments and against scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from rdrop_jax.compare import stats
from rdrop_jax.compare.report import signed

TEST_SIZE = 360


def experiments(count, seeds, difference, rng):
    """Accuracies of two arms that share the effect of a seed."""
    shared = rng.normal(0.95, 0.01, (count, seeds))
    arms = [shared + rng.normal(d, 0.008, (count, seeds)) for d in (difference, 0.0)]
    return [np.round(arm * TEST_SIZE) / TEST_SIZE for arm in arms]


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("difference", [0.0, 0.01])
def test_intervals_have_the_nominal_coverage(seeds, difference):
    a, b = experiments(20_000, seeds, difference, np.random.default_rng(seeds))
    low, high = stats.t_interval(a - b)
    assert 0.93 <= np.mean((low <= difference) & (difference <= high)) <= 0.97


def verdict(found, **kwargs):
    return stats.verdict(vars(found), **kwargs)


def verdicts(difference, seeds, count=200):
    a, b = experiments(count, seeds, difference, np.random.default_rng(7))
    return [
        verdict(stats.paired(x, y), higher_is_better=True)
        for x, y in zip(a, b, strict=True)
    ]


def test_a_simulated_difference_is_detected():
    assert verdicts(0.025, 10).count("helps") >= 190
    assert verdicts(-0.025, 10).count("hurts") >= 190


def test_no_difference_is_inconclusive():
    found = verdicts(0.0, 10, count=400)
    assert found.count("inconclusive") >= 0.93 * 400
    assert abs(found.count("helps") - found.count("hurts")) < 20


def test_few_seeds_give_no_verdict():
    a = np.array([0.9, 0.91, 0.92, 0.93, 0.94])
    assert verdict(stats.paired(a, a - 0.1), higher_is_better=True) == ""
    more = np.append(a, 0.95)
    noisy = more - 0.1 - np.arange(6) * 1e-3
    assert verdict(stats.paired(more, noisy), higher_is_better=True) == "helps"
    assert verdict(stats.paired(more, noisy), higher_is_better=False) == "hurts"
    assert verdict(stats.paired(more, more), higher_is_better=True) == ("inconclusive")


def test_an_interval_without_zero_is_not_enough():
    """With one opposite seed the t interval excludes 0, but p is above 0.05."""
    values = np.array([1.0, 1.0, 1.0, 1.0, 1.0, -0.05])
    found = stats.paired(values, np.zeros(6))
    assert found.low > 0
    assert found.p == pytest.approx(4 / 64)
    assert verdict(found, higher_is_better=True) == "inconclusive"


def test_values_equal_scipy_s():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8))
    found = stats.paired(a, b)
    expected = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-12)
    assert found.sd == pytest.approx(scipy_stats.tstd(a - b))


@pytest.mark.parametrize("seeds", [2, 5, 6, 9])
def test_sign_flips_equal_enumeration(seeds):
    d = np.random.default_rng(seeds).normal(0.4, 1.0, seeds)
    flips = [np.mean(s * d) for s in itertools.product([-1, 1], repeat=seeds)]
    expected = np.mean(np.abs(flips) >= abs(d.mean()) - 1e-12)
    found = stats.paired(d, np.zeros(seeds))
    assert found.p == pytest.approx(expected)
    assert found.smallest_p == 2 / 2**seeds
    same_sign = stats.paired(np.abs(d), np.zeros(seeds))
    assert same_sign.p == pytest.approx(same_sign.smallest_p)


def test_many_seeds_are_flipped_at_random():
    d = np.random.default_rng(0).normal(0.3, 1.0, 30)
    t = scipy_stats.ttest_1samp(d, 0.0).pvalue
    assert stats.paired(d, np.zeros(30)).p == pytest.approx(t, rel=0.2)


def test_the_minimum_of_random_flips():
    found = stats.paired(np.arange(1.0, 31.0), np.zeros(30))
    assert found.p == pytest.approx(found.smallest_p)


def test_one_seed_has_no_interval():
    found = stats.paired(np.array([0.9]), np.array([0.8]))
    assert np.isnan([found.sd, found.low, found.high]).all()
    assert found.p == found.smallest_p == 1.0


def test_rounding_errors_have_no_sign():
    assert [signed(x) for x in (0.0, -5.6e-17, 0.25, -1.5)] == [
        "0",
        "0",
        "+0.25",
        "\N{MINUS SIGN}1.5",
    ]


def test_a_score_that_is_not_finite_is_no_verdict():
    diff = {"values": [1.0] * 6, "mean": np.nan, "low": np.nan, "high": np.nan}
    for higher in (True, False):
        word = stats.verdict(diff | {"p": 0.0}, higher_is_better=higher)
        assert word == "inconclusive"


def test_ties_of_scores_with_rounding_count_as_ties():
    base = np.array([1327, 1035, 1465, 1116, 1120, 1173, 1192])
    more = np.array([2, -2, 4, 5, 2, 2, 2])
    found = stats.paired((base + more) / 1725, base / 1725)
    flips = np.array(list(itertools.product((1, -1), repeat=len(more)))) @ more
    p = np.mean(np.abs(flips) >= abs(more.sum()))
    assert p == 0.09375
    assert found.p == pytest.approx(p)
    assert verdict(found, higher_is_better=True) == "inconclusive"
