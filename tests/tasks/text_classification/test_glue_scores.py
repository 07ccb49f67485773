"""Scores of GLUE: equal to their formulas, and 0 where those are not defined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import rankdata

from rdrop_jax.tasks.text_classification import scores


def f1(predicted, labels):
    true = np.sum(predicted & labels)
    wrong = np.sum(predicted != labels)
    return 2 * true / (2 * true + wrong) if true + wrong else 0.0


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_scores_of_class_ids(num_classes):
    ids = arrays.arrays(np.int64, 20, elements=st.integers(0, num_classes - 1))

    @settings(max_examples=50, deadline=None)
    @given(ids, ids)
    def compare(predicted, labels):
        each = [f1(predicted == c, labels == c) for c in range(num_classes)]
        wanted = each[1] if num_classes == 2 else np.mean(each)
        found = scores.f1(predicted, labels, num_classes)
        assert found == pytest.approx(wanted, abs=1e-12)
        # Matthews' correlation is the correlation of one-hot ids.
        a, b = (np.eye(num_classes)[x] for x in (predicted, labels))
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        spread = np.sqrt(np.sum(a * a) * np.sum(b * b))
        wanted = np.sum(a * b) / spread if spread else 0.0
        found = scores.matthews(predicted, labels)
        assert found == pytest.approx(wanted, abs=1e-12)

    compare()


def test_constant_predictions_score_nothing():
    labels = np.array([0, 1, 1, 0])
    ones, zeros = np.ones(4, np.int64), np.zeros(4, np.int64)
    for constant in (ones, zeros):
        assert scores.matthews(constant, labels) == 0.0
        assert scores.matthews(constant, constant) == 0.0
        assert scores.matthews(labels, constant) == 0.0
    assert scores.f1(zeros, labels, 2) == 0.0
    assert scores.f1(zeros, zeros, 2) == 0.0
    assert scores.f1(ones, ones, 2) == 1.0
    assert scores.f1(zeros, zeros, 3) == pytest.approx(1 / 3)


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.bool_, (6, 4)), arrays.arrays(np.bool_, (6, 4)))
def test_scores_of_label_sets(predicted, labels):
    found = scores.f1_multilabel(predicted, labels)
    assert found["f1_micro"] == pytest.approx(f1(predicted, labels))
    each = [f1(a, b) for a, b in zip(predicted.T, labels.T, strict=True)]
    assert found["f1_macro"] == pytest.approx(np.mean(each))


@pytest.mark.parametrize("bad", [slice(0, 1), slice(None)])
def test_outputs_that_are_nan_have_no_scores(bad):
    logits, labels = np.zeros((6, 2)), np.array([0, 1, 0, 0, 1, 0])
    logits[bad, 0] = np.nan
    seen, names = np.ones(6, bool), ["B-X", "O"]
    for found in (
        scores.of_classes(logits, labels),
        scores.of_label_sets(logits, np.eye(2)[labels]),
        scores.of_numbers(logits[:, :1], labels.astype(np.float64)),
        scores.of_words(logits, labels, seen, [6], names),
    ):
        counts = {x: found.pop(x) for x in ("examples", "words") if x in found}
        assert set(counts.values()) <= {1, 6}
        found.pop("words_cut", None)
        assert np.isnan(list(found.values())).all()


@pytest.mark.parametrize("seed", range(5))
def test_correlations(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 50).astype(np.float64)  # with ties, as STS-B
    predicted = labels + rng.normal(size=50) * 10.0 ** (seed - 2)
    for score, values in ((scores.pearson, lambda x: x), (scores.spearman, rankdata)):
        wanted = np.corrcoef(values(predicted), values(labels))[0, 1]
        assert score(predicted, labels) == pytest.approx(wanted)


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
