"""Batches by length: every row once per epoch, few shapes, a function of the step."""

import collections
import itertools

import numpy as np
import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.text_classification import buckets

LENGTHS = np.random.default_rng(0).integers(2, 65, 1000)
SHAPES = buckets.make_shapes(64, 4)


def make(rows, time):
    assert LENGTHS[rows].max() <= time
    return {"row": rows, "time": np.full(len(rows), time)}


def batches(**options):
    return buckets.BucketBatches(
        LENGTHS, make, **{"batch_size": 8, "shapes": SHAPES, "seed": 0} | options
    )


def test_shapes_are_few_and_the_last_fits_all():
    assert SHAPES == (16, 32, 48, 64)
    assert buckets.make_shapes(10, 3) == (4, 7, 10)
    assert [buckets.fit(n, SHAPES) for n in (1, 16, 17, 64)] == [16, 16, 32, 64]
    found = {batches()[step]["time"][0] for step in range(125)}
    assert found == set(SHAPES)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("seed", range(4))
def test_chosen_shapes_pad_least(count, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.geometric(0.3, 12) + int(rng.integers(0, 4))

    def padding(shapes):
        return sum(buckets.fit(n, shapes) - n for n in lengths.tolist())

    found = buckets.choose_shapes(lengths, count)
    assert found[-1] == lengths.max()
    assert len(found) <= count
    assert list(found) == sorted(set(found))
    others = sorted({*lengths.tolist()} - {lengths.max()})
    least = min(
        padding((*some, int(lengths.max())))
        for size in range(min(count, len(others) + 1))
        for some in itertools.combinations(others, size)
    )
    assert padding(found) == least


def test_each_epoch_is_complete():
    data = batches()
    assert data.steps_per_epoch == 125
    # 1,000 rows and windows of 512: windows end within epochs, epochs within windows.
    span = 125 * buckets.WINDOW
    seen = collections.Counter(
        int(row) for step in range(span) for row in data[step]["row"]
    )
    assert set(seen.values()) == {buckets.WINDOW}


def test_a_batch_is_a_function_of_seed_and_step():
    a, b = batches(), batches()
    for step in (500, 3, 70, 0):  # in another order
        np.testing.assert_array_equal(a[step]["row"], b[step]["row"])
    b = batches()
    for step in (0, 3, 70, 500):
        np.testing.assert_array_equal(a[step]["row"], b[step]["row"])
    assert not np.array_equal(a[0]["row"], batches(seed=1)[0]["row"])
    first, second = (
        {tuple(sorted(a[s]["row"])) for s in range(e * 128, e * 128 + 128)}
        for e in (0, 1)
    )
    assert len(first & second) < 5  # neighbours change from epoch to epoch


def test_processes_make_their_own_rows_of_one_shape():
    whole = batches()
    parts = [batches(process=(i, 2)) for i in (0, 1)]
    for step in range(10):
        found = [part[step] for part in parts]
        np.testing.assert_array_equal(
            np.concatenate([part["row"] for part in found]), whole[step]["row"]
        )
        assert len({part["time"][0] for part in found}) == 1
    with pytest.raises(InputError, match=r"batch_size: expected a multiple of 3"):
        batches(process=(0, 3))


def test_padding_is_what_the_batches_hold():
    data = batches()
    held = [data[step] for step in range(100)]
    cells = sum(len(b["row"]) * b["time"][0] for b in held)
    tokens = sum(LENGTHS[b["row"]].sum() for b in held)
    assert data.padding(100) == pytest.approx(1 - tokens / cells)
    # Uniform lengths and four shapes: half a step of 16 on 32 would be 0.2.
    assert data.padding(100) < 0.25
    unsorted = np.maximum.reduceat(LENGTHS, np.arange(0, 1000, 8)).mean()
    assert data.padding(100) < 0.75 * (1 - LENGTHS.mean() / unsorted)


@pytest.mark.parametrize("batch_size", [1, 7, 1000, 1024])
def test_evaluation_holds_every_row_once(batch_size):
    rows, shapes = [], set()
    found = buckets.eval_batches(LENGTHS, make, batch_size=batch_size, shapes=SHAPES)
    for kept, batch in found:
        assert len(batch["row"]) == batch_size
        np.testing.assert_array_equal(batch["row"][: len(kept)], kept)
        rows += kept.tolist()
        shapes.add(int(batch["time"][0]))
    assert sorted(rows) == list(range(1000))
    assert shapes <= set(SHAPES)
