"""Scores of classification against plain loops."""

import jax
import numpy as np
import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.classification import class_answer
from rdrop_jax.tasks.image_classification import scores

sums = jax.jit(scores.sums)


def slow(logits, labels):
    """Accuracy, top-5, loss and calibration, one row at a time."""
    bins = [[] for _ in range(15)]
    hits = top = loss = 0
    for row, label in zip(logits, labels, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        hits += order[0] == label
        top += label in order[:5]
        loss -= np.log(p[label])
        number = next(b for b in range(15) if p.max() <= (b + 1) / 15)
        bins[number].append((p.max(), order[0] == label))
    ece = 0
    for found in filter(None, bins):
        confidence, right = np.mean(found, axis=0)
        ece += len(found) / len(labels) * abs(right - confidence)
    rows = len(labels)
    return {
        "accuracy": hits / rows,
        "top5": top / rows,
        "loss": loss / rows,
        "ece": ece,
    }


@pytest.mark.parametrize("classes", [2, 4, 30])
def test_scores_match_plain_loops(classes):
    rng = np.random.default_rng(classes)
    logits = (3 * rng.normal(size=(100, classes))).astype(np.float32)
    logits[:10] = np.round(logits[:10])  # ties
    labels = rng.integers(0, classes, 100)
    where = rng.random(100) < 0.8
    logits[~where] = np.nan
    parts = [
        jax.device_get(sums(logits[i : i + 25], labels[i : i + 25], w))
        for i, w in ((i, where[i : i + 25]) for i in range(0, 100, 25))
    ]
    found = scores.scores(parts)
    assert found.pop("examples") == where.sum()
    wanted = slow(logits[where].astype(np.float64), labels[where])
    assert found == pytest.approx(wanted, abs=1e-6)
    assert set(found) == set(scores.NAMES)


def test_logits_that_are_nan_have_no_scores():
    logits, where = np.zeros((4, 3), np.float32), np.ones(4, bool)
    logits[2, 1] = np.nan
    found = scores.scores([jax.device_get(sums(logits, np.zeros(4, np.int32), where))])
    assert found.pop("examples") == 4
    assert set(found) == set(scores.NAMES)
    assert np.isnan(list(found.values())).all()
    with pytest.raises(InputError, match=r"^--checkpoint: expected a model with fin"):
        class_answer(np.array([np.nan, np.nan]), ())


def test_a_calibrated_model_scores_zero():
    # Confidence 3/4, right three times of four.
    logits = np.log(np.tile([0.75, 0.25], (4, 1))).astype(np.float32)
    for labels, ece in (([0, 0, 0, 1], 0.0), ([1, 1, 1, 1], 0.75)):
        part = sums(logits, np.array(labels), np.ones(4, bool))
        found = scores.scores([jax.device_get(part)])
        assert found["ece"] == pytest.approx(ece, abs=1e-6)


def test_logits_that_are_not_numbers_are_no_hits():
    logits = np.full((2, 10), np.nan, np.float32)
    found = sums(logits, np.array([3, 4]), np.ones(2, bool))
    assert int(found["top5"]) == 0
