"""Blocks to train on and windows to score: nothing twice, nothing left out."""

import numpy as np
import pytest

from rdrop_jax.data.batches import TrainBatches
from rdrop_jax.tasks.language_modeling.windows import Windows

TEXT = np.arange(100, 123, dtype=np.int32)
BEFORE = 7


def counted(rows):
    """Labels that count, with how much stands before each in its row."""
    return [
        (int(label), at)
        for row in rows
        for at, (label, counts) in enumerate(
            zip(row["labels"], row["where"], strict=True)
        )
        if counts
    ]


@pytest.mark.parametrize("size", [1, 2, 5, 23, 24, 40])
def test_blocks_hold_every_token_once(size):
    blocks = Windows(TEXT, size, BEFORE)
    rows = [blocks[i] for i in range(len(blocks))]
    assert [label for label, _ in counted(rows)] == TEXT.tolist()
    inputs = np.concatenate([row["inputs"][row["where"]] for row in rows])
    assert inputs.tolist() == [BEFORE, *TEXT[:-1]]
    assert {row["inputs"].shape for row in rows} == {(size,)}


@pytest.mark.parametrize("size", [1, 2, 3, 8, 23, 30])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_windows_score_every_token_once_with_its_context(size, share):
    context = int(share * size)
    windows = Windows(TEXT, size, BEFORE, context)
    found = counted(windows[i] for i in range(len(windows)))
    assert [label for label, _ in found] == TEXT.tolist()
    new = size - context
    for at, (_, before) in enumerate(found):
        # From the last context that fits before this window's first new token.
        assert before == at - max(at // new * new - context, 0)


def test_what_a_window_reads():
    row = Windows(TEXT, 5, BEFORE, 3)[3]  # scores tokens 6 and 7 after 3, 4, 5
    assert row["labels"].tolist() == [103, 104, 105, 106, 107]
    assert row["inputs"].tolist() == [102, 103, 104, 105, 106]
    assert row["where"].tolist() == [False, False, False, True, True]


def test_batches_are_a_function_of_seed_and_step():
    def batches(seed, process=(0, 1)):
        return TrainBatches(
            Windows(TEXT, 4, BEFORE),
            lambda row, rng: row,
            batch_size=2,
            seed=seed,
            process=process,
        )

    one, again, other = batches(3), batches(3), batches(4)
    order = [again[t]["labels"] for t in (5, 0, 2, 1, 4, 3)]  # asked in any order
    for t, labels in zip((5, 0, 2, 1, 4, 3), order, strict=True):
        np.testing.assert_array_equal(one[t]["labels"], labels)
    assert any((one[t]["labels"] != other[t]["labels"]).any() for t in range(3))
    epoch = np.concatenate([one[t]["labels"][one[t]["where"]] for t in range(3)])
    assert sorted(epoch) == TEXT.tolist()
    parts = [batches(3, (i, 2))[1]["labels"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), one[1]["labels"])
