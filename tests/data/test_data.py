"""Batches: complete epochs, random access, exact evaluation, checks."""

import threading

import numpy as np
import pytest

from rdrop_jax import flags, tasks
from rdrop_jax.data import batches, sources
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.tasks.image_classification import images


class Numbers:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        return {"number": np.int64(row)}


def noisy(row, rng):
    return row | {"noise": rng.random()}


def train(batch_size=4, seed=0, process=(0, 1), count=10):
    return batches.TrainBatches(
        Numbers(count), noisy, batch_size=batch_size, seed=seed, process=process
    )


def test_batch_t_is_a_pure_function_of_seed_and_t():
    one, other = train(), train()
    backwards = {t: other[t] for t in reversed(range(12))}
    for t in range(12):
        for name in ("number", "noise"):
            np.testing.assert_array_equal(one[t][name], backwards[t][name])
    assert np.any(train(seed=1)[0]["noise"] != one[0]["noise"])


def test_epochs_are_complete_and_differ():
    data = train(batch_size=5)
    assert data.steps_per_epoch == 2.0
    epochs = [
        np.concatenate([data[t]["number"] for t in (2 * e, 2 * e + 1)])
        for e in range(4)
    ]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_augmentation_differs_between_epochs():
    data = train(batch_size=10)
    by_number = [
        dict(zip(data[t]["number"], data[t]["noise"], strict=True)) for t in (0, 1)
    ]
    assert by_number[0] != by_number[1]


def test_processes_share_a_batch():
    whole = train()[3]["number"]
    parts = [train(process=(i, 2))[3]["number"] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(ValueError, match="multiple of 3 processes, found 4"):
        train(process=(0, 3))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_prefetch_keeps_order_and_raises_in_place(ahead):
    found = list(batches.prefetch(lambda t: t * t, 2, 9, ahead=ahead))
    assert found == [t * t for t in range(2, 9)]

    def fails(t):
        if t == 4:
            raise InputError("row 4")
        return t

    seen = []
    with pytest.raises(InputError, match="row 4"):
        seen.extend(batches.prefetch(fails, 0, 9, ahead=ahead))
    assert seen == [0, 1, 2, 3]
    assert list(batches.prefetch(lambda t: t, 5, 5, ahead=ahead)) == []


def test_evaluation_sees_every_row_once_in_one_shape():
    found = list(batches.eval_batches(Numbers(10), lambda row: row, batch_size=4))
    assert [len(b["number"]) for b in found] == [4, 4, 4]
    seen = np.concatenate([b["number"][b["where"]] for b in found])
    np.testing.assert_array_equal(seen, np.arange(10))


def test_digits_are_split_without_overlap():
    splits = {name: sources.digits(name, 0) for name in SPLITS}
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }
    rows = [image.tobytes() for s in splits.values() for image in s.images]
    assert len(set(rows)) == len(rows) == 1797
    assert splits["test"].images.dtype == np.uint8
    assert splits["test"].images.max() == 255
    other = sources.digits("test", 1)
    assert np.any(other.labels != splits["test"].labels)
    assert len(checksums.sha256(sources.digits_file())) == 64


def test_labels_out_of_range_name_the_row():
    for label in (-1, 10):
        labels = np.array([0, 9, label, 3, label])
        with pytest.raises(InputError) as error:
            sources.check_labels(labels, 10, "mine, train")
        assert str(error.value) == (
            "mine, train: expected labels from 0 to data.num_classes - 1 = 9, found "
            f"{label} in row 2 (2 such rows)"
        )


def test_missing_data_is_named(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"data\.name=digits: expected scikit-learn"):
        tasks.check_data(flags.load("configs/vit.py", {}))


class Fixed(np.random.Generator):
    def __init__(self, *moves):
        super().__init__(np.random.PCG64(0))
        self.moves = moves

    def uniform(self, low, high, size):
        return np.array(self.moves)


def test_shifts_move_and_interpolate():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    down = images.random_shift(image, 1.0, Fixed(-1.0, 0.0))[..., 0]
    np.testing.assert_array_equal(down, np.vstack([np.zeros((1, 4)), image[:-1, :, 0]]))
    left = images.random_shift(image, 1.0, Fixed(0.0, 1.0))[..., 0]
    np.testing.assert_array_equal(left, np.hstack([image[:, 1:, 0], np.zeros((4, 1))]))
    half = images.random_shift(image, 0.5, Fixed(0.0, 0.5))[..., 0]
    np.testing.assert_allclose(half[:, :3], image[:, :3, 0] + 0.5)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(images.random_shift(image, 0.0, rng), image)


def test_normalize():
    image = np.array([[[0], [255]]], np.uint8)
    np.testing.assert_allclose(
        images.normalize(image, (0.5,), (0.5,))[..., 0], [[-1.0, 1.0]]
    )


@pytest.mark.parametrize("ahead", [0, 1])
def test_prefetch_says_when_a_batch_is_late(ahead):
    late = []
    made = threading.Event()

    def make(step):
        if step == 1:
            made.wait()
        return step

    def note():
        late.append(True)
        made.set()

    stream = batches.prefetch(make, 0, 3, ahead=ahead, late=note)
    assert list(stream) == [0, 1, 2]
    assert late
    assert len(late) == 3 or ahead
