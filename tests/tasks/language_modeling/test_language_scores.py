"""Scores of GLUE: equal to scikit-learn and scipy, and defined where those are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from sklearn import metrics

from rdrop_jax.tasks.text_classification import scores


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_of_class_ids_as_scikit_learn(num_classes):
    ids = arrays.arrays(np.int64, 20, elements=st.integers(0, num_classes - 1))

    @settings(max_examples=200, deadline=None)
    @given(ids, ids)
    def compare(predicted, labels):
        every = list(range(num_classes))
        assert scores.accuracy(predicted, labels) == pytest.approx(
            metrics.accuracy_score(labels, predicted)
        )
        binary = {"pos_label": 1} if num_classes == 2 else {"labels": every}
        wanted = metrics.f1_score(
            labels,
            predicted,
            average="binary" if num_classes == 2 else "macro",
            zero_division=0.0,
            **binary,
        )
        found = scores.f1(predicted, labels, num_classes)
        assert found == pytest.approx(wanted, abs=1e-12)
        assert scores.matthews(predicted, labels, num_classes) == pytest.approx(
            _matthews(labels, predicted), abs=1e-12
        )

    compare()


def _matthews(labels, predicted):
    if len({*labels, *predicted}) == 1:  # of which scikit-learn warns
        return 0.0
    return metrics.matthews_corrcoef(labels, predicted)


def test_constant_predictions_score_nothing():
    labels = np.array([0, 1, 1, 0])
    ones, zeros = np.ones(4, np.int64), np.zeros(4, np.int64)
    for constant in (ones, zeros):
        assert scores.matthews(constant, labels, 2) == 0.0
        assert scores.matthews(constant, constant, 2) == 0.0
        assert scores.matthews(labels, constant, 2) == 0.0
    assert scores.f1(zeros, labels, 2) == 0.0
    assert scores.f1(zeros, zeros, 2) == 0.0
    assert scores.f1(ones, ones, 2) == 1.0
    assert scores.f1(zeros, zeros, 3) == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(np.bool_, (6, 4)),
    arrays.arrays(np.bool_, (6, 4)),
)
def test_of_label_sets_as_scikit_learn(predicted, labels):
    wanted = metrics.f1_score(labels, predicted, average="micro", zero_division=0.0)
    assert scores.f1_micro(predicted, labels) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_correlations_as_scipy(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 50).astype(np.float64)  # with ties, as STS-B
    predicted = labels + rng.normal(size=50) * 10.0 ** (seed - 2)
    assert scores.pearson(predicted, labels) == pytest.approx(
        stats.pearsonr(predicted, labels).statistic
    )
    assert scores.spearman(predicted, labels) == pytest.approx(
        stats.spearmanr(predicted, labels).statistic
    )


@pytest.mark.parametrize(
    ("scale", "shift"), [(1e-200, 0.0), (1e200, 0.0), (1.0, 1e6), (-2.0, 1.0)]
)
def test_pearson_at_any_scale(scale, shift):
    labels = np.random.default_rng(0).normal(size=20)
    found = scores.pearson(labels * scale + shift, labels)
    assert found == pytest.approx(np.sign(scale), abs=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e300, -3.0])
def test_correlations_with_a_constant_are_zero(constant):
    labels, same = np.arange(7.0), np.full(7, constant)
    for score in (scores.pearson, scores.spearman):
        assert score(same, labels) == 0.0
        assert score(labels, same) == 0.0
        assert score(same, same) == 0.0
        assert score(labels[:1], labels[:1]) == 0.0
        assert score(labels[:0], labels[:0]) == 0.0
