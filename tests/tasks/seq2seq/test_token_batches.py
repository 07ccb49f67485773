"""Token batches: whole epochs, few shapes, little padding, no history."""

import numpy as np
import pytest

from rdrop_jax.data.tokenizers import EOS, PAD
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import token_batches as tb
from rdrop_jax.tasks.seq2seq.sentences import concatenate


def encoded_pairs(pairs=3000, seed=0):
    """Lengths like those of captions: sources log-normal, targets near them."""
    rng = np.random.default_rng(seed)
    source = np.clip(rng.lognormal(2.6, 0.35, pairs), 3, 60).astype(int)
    target = np.clip(source * rng.normal(1.03, 0.12, pairs), 2, 70).astype(int)
    made = ([rng.integers(3, 99, n).tolist() for n in x] for x in (source, target))
    return tuple(concatenate(sentences, 100) for sentences in made)


def make(pairs=3000, max_tokens=1024, multiple=8, count=8, **kwargs):
    source, target = encoded_pairs(pairs)
    lengths = tb.choose_lengths(source.lengths, target.lengths, count)
    shapes = tb.make_shapes(lengths, max_tokens, multiple)
    return tb.TokenBatches(source, target, shapes, **{"seed": 0} | kwargs)


def test_batch_t_is_a_pure_function_of_seed_and_t():
    one, other = make(), make()
    steps = [0, 3, int(one.steps_per_epoch) + 1, 2 * int(one.steps_per_epoch)]
    backwards = {t: other[t] for t in reversed(steps)}
    for t in steps:
        for name, x in one[t].items():
            np.testing.assert_array_equal(x, backwards[t][name])
    assert any(
        np.any(make(seed=1).plan(t).pairs[:3] != one.plan(t).pairs[:3])
        for t in range(3)
    )


def test_an_epoch_holds_every_pair_once_and_epochs_differ():
    data = make()
    steps = int(data.steps_per_epoch)
    epochs = [[data.plan(e * steps + i) for i in range(steps)] for e in range(3)]
    for epoch in epochs:
        seen = np.concatenate([batch.pairs for batch in epoch])
        np.testing.assert_array_equal(np.sort(seen), np.arange(3000))
    orders = {tuple(batch.shape for batch in epoch) for epoch in epochs}
    assert len(orders) == 3  # across buckets
    firsts = {min(batch.pairs.min() for batch in e if 7 in batch.pairs) for e in epochs}
    neighbours = [
        set(next(b.pairs for b in e if 7 in b.pairs).tolist()) for e in epochs
    ]
    assert neighbours[0] != neighbours[1] != neighbours[2], firsts  # within buckets
    assert data.examples_per_step == 3000 / steps


def test_shapes_are_few_and_padding_is_small():
    data = make()
    found = {
        tuple(x.shape for x in data[t].values()) for t in range(3 * len(data._epoch(0)))
    }
    assert len(found) <= len(data.shapes) <= 8
    assert data.padding < 0.15
    for shape in data.shapes:
        assert shape.rows * max(shape.source, shape.target) <= 1024
        assert shape.rows % 8 == 0
    tokens = cells = 0
    for t in range(int(data.steps_per_epoch)):
        batch = data[t]
        rows = batch["where"].any(axis=1)
        tokens += batch["src_where"][rows].sum() + batch["where"].sum()
        cells += batch["src"].size + batch["labels"].size
    assert 1 - tokens / cells == pytest.approx(data.padding)


def test_what_a_batch_holds():
    source = concatenate([[5, 6], [7]], 100)
    target = concatenate([[8], [9, 10, 11]], 100)
    batch = tb.Batch(tb.Shape(4, 5, 4), np.array([1, 0]))
    found = tb.collate(source, target, batch, range(4))
    row = {"src": [7, EOS], "labels": [9, 10, 11, EOS], "inputs": [EOS, 9, 10, 11]}
    for name, ids in row.items():
        width = 4 if name == "src" else 5
        assert found[name][0].tolist() == ids + [PAD] * (width - len(ids))
    assert found["src_where"].sum(axis=1).tolist() == [2, 3, 3, 3]
    assert found["where"].sum(axis=1).tolist() == [4, 2, 0, 0]  # the last two only fill
    assert source.ids.dtype == np.uint16
    assert concatenate([[70000]], 70001).ids.dtype == np.int32


def test_processes_share_a_batch():
    whole, parts = make()[5], [make(process=(i, 2))[5] for i in (0, 1)]
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), x)
    with pytest.raises(
        InputError, match=r"data\.rows_multiple: expected a multiple of 3"
    ):
        make(process=(0, 3))


def test_left_overs_go_on_in_larger_buckets():
    shapes = [tb.Shape(4, 4, 8), tb.Shape(5, 5, 8), tb.Shape(9, 9, 4)]
    buckets = np.array([0] * 10 + [1] * 6 + [2] * 3)
    found = list(tb.cut(np.arange(19), buckets, shapes))
    assert [(len(b.pairs), b.shape.source) for b in found] == [(8, 4), (8, 5), (3, 9)]


def test_a_batch_too_small_for_its_longest_pair_is_refused():
    with pytest.raises(
        InputError, match=r"least 488, which is 8 rows of 61 tokens, found 400"
    ):
        tb.make_shapes([(10, 10), (60, 61)], 400, 8)


def test_very_many_lengths_are_looked_at_coarsely(monkeypatch):
    rng = np.random.default_rng(0)
    source, target = rng.integers(1, 1022, 3000), rng.integers(1, 90, 3000)
    fine = tb.choose_lengths(source, target, 3)
    monkeypatch.setattr(tb, "_DIFFERENT", 500)
    coarse = tb.choose_lengths(source, target, 3)

    def cells(lengths):  # refuses lengths that some pair does not fit
        buckets = tb.assign(source, target, tb.make_shapes(lengths, 10_000, 1))
        return sum(sum(lengths[bucket]) for bucket in buckets)

    assert cells(coarse) < 1.02 * cells(fine)
    assert max(fine) <= (source.max(), target.max())
