"""Subsets of labelled rows."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.tiny import train

from rdrop_jax import tasks
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification.subsets import balanced_subset

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


def test_unlabelled_rows_show_images_alone(tmp_path):
    made = tiny.config(data__labelled=40, data__unlabelled=100)
    task = tasks.build(made)
    data = task.train_data()
    batches = [data[t] for t in range(round(data.steps_per_epoch))]
    known = np.concatenate([batch["labelled"] for batch in batches])
    assert len(known) == 128
    assert 30 < known.sum() <= 40

    batch = next(b for b in batches if 0 < b["labelled"].sum() < 30)
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    wrong = jnp.where(batch["labelled"] == 1, batch["label"], 9 - batch["label"])
    logits = np.random.default_rng(0).normal(size=(2, len(wrong), 10))
    loss, other, without = (
        task.loss(jnp.asarray(logits, jnp.float32), b, alpha=a)[0]
        for b, a in (
            (batch, 1.0),
            (batch | {"label": wrong}, 1.0),
            (batch, 0.0),
        )
    )
    assert loss == other
    assert loss > without + 0.1


def test_counts_of_unlabelled_rows_are_checked(tmp_path):
    with pytest.raises(InputError, match=r"data.unlabelled: expected 0 to 1217 rows"):
        train(tmp_path, data__labelled=40, data__unlabelled=1218)
    with pytest.raises(InputError, match=r"data.unlabelled: expected 0 for"):
        train(tmp_path, data__unlabelled=10)
