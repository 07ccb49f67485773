"""Subsets of labelled rows."""

import numpy as np
import pytest
from tiny import train

from rdrop_jax.data.subsets import balanced_subset
from rdrop_jax.errors import InputError

LABELS = np.random.default_rng(0).choice(4, 400, p=[0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("count", [1, 7, 40, 400])
def test_classes_are_balanced_as_far_as_they_go(count):
    rows = balanced_subset(LABELS, count, seed=1)
    assert len(set(rows.tolist())) == count
    sizes = np.bincount(LABELS[rows], minlength=4)
    whole = np.bincount(LABELS, minlength=4)
    free = sizes < whole
    if free.any():
        assert sizes.max() - sizes[free].min() <= 1


def test_it_is_drawn_by_the_seed():
    a, b, again = (balanced_subset(LABELS, 40, seed).tolist() for seed in (0, 1, 0))
    assert a == again
    assert a != b
    assert set(a) <= set(balanced_subset(LABELS, 60, 0).tolist())


def test_other_counts_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.labelled: expected 1 to 400"):
        balanced_subset(LABELS, 401, 0)
    with pytest.raises(InputError, match=r"expected 1 to 1257 .* found -1"):
        train(tmp_path, data__labelled=-1)
