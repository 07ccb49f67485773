"""data.folds, data.fold and data.columns.group: validation rows by fold and group."""

import json

import numpy as np
import pytest
from helpers import texts, tiny
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.data import splits, tables
from rdrop_jax.data.datasets import Dataset
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.text_classification import task as text_task
from rdrop_jax.tasks.text_classification import text_sets

RNG = np.random.default_rng(0)
CLASSES = RNG.permutation(np.repeat([0, 1, 2, -1], [50, 30, 10, 13]))
GROUPS = (np.arange(103) // 4).tolist()


def data_of(fold=0, folds=5, seed=0, **more):
    plain = {
        "folds": folds,
        "fold": fold,
        "split_seed": seed,
        "classes": ("a", "b", "c"),
    }
    return ConfigDict(plain | {"files": {"validation": ""}} | more)


def cut(fold, sizes=None, classes=CLASSES, groups=None, **more):
    data = data_of(fold, **more)
    return splits.cut(103, sizes or {}, data, classes=classes, groups=groups)


def test_folds_partition_the_rows_with_the_same_share_of_classes():
    found = [cut(fold) for fold in range(5)]
    rows = np.concatenate([each["validation"] for each in found])
    assert sorted(rows) == list(range(103))
    for each in found:
        union = np.concatenate([each["train"], each["validation"]])
        assert sorted(union) == list(range(103))
        kinds = CLASSES[each["validation"]]
        assert [np.sum(kinds == c) for c in range(3)] == [10, 6, 2]
        assert np.sum(kinds < 0) in (2, 3)


def test_folds_depend_on_the_seed_alone():
    for groups in (None, GROUPS):
        one, same, other = (
            cut(1, groups=groups, seed=seed)["validation"].tolist()
            for seed in (2**62, 2**62, 3)
        )
        assert one == same != other
        checksum = splits.checksum({"validation": np.array(one)})
        assert checksum != splits.checksum({"validation": np.array(other)})


def test_a_group_is_in_one_fold():
    found = [cut(fold, groups=GROUPS) for fold in range(5)]
    owners = [{GROUPS[i] for i in each["validation"]} for each in found]
    assert sum(map(len, owners)) == len(set(GROUPS))
    for each, owner in zip(found, owners, strict=True):
        assert not owner & {GROUPS[i] for i in each["train"]}
        assert 15 <= len(each["validation"]) <= 26  # balanced


def test_test_rows_are_the_same_for_all_folds():
    for groups in (None, GROUPS):
        found = [
            cut(f, {"validation": 0.5, "test": 12.0}, groups=groups) for f in (0, 3)
        ]
        np.testing.assert_array_equal(found[0]["test"], found[1]["test"])
        assert len(found[0]["test"]) == 12  # three groups
        each = [*found[0].values()]
        assert sorted(np.concatenate(each)) == list(range(103))
        if groups:
            test = {groups[i] for i in found[0]["test"]}
            assert not test & {groups[i] for i in found[0]["validation"]}


def test_groups_are_held_out_whole_without_folds():
    found = cut(0, {"validation": 0.1, "test": 7.0}, groups=GROUPS, folds=0)
    assert [len(found[s]) for s in ("validation", "test")] == [12, 7]
    kept = [{GROUPS[i] for i in rows} for rows in found.values()]
    assert sum(map(len, kept)) == len(set(GROUPS))
    with pytest.raises(InputError, match=r"^data.test: .* leaves groups .* 26 groups"):
        cut(0, {"test": 100.0}, groups=GROUPS, folds=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 104}, "data.folds: expected at most 103, the number of rows of the"),
        ({"folds": 27, "groups": GROUPS}, "data.folds: expected at most 26, .* groups"),
        (
            {"folds": 11},
            "data.folds: expected rows of class c in each of 11 folds, found 10 rows",
        ),
        (
            {"groups": [*map(str, CLASSES)]},
            "data.folds: expected at most 4, the number of groups",
        ),
        (
            {"groups": np.where(CLASSES == 2, -1, np.arange(103)).tolist()},
            "data.folds: expected rows of class c in each of 5 folds, found 1 groups",
        ),
    ],
)
def test_folds_that_cannot_be_cut(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        cut(0, **options)


def test_a_fold_without_a_class_is_refused():
    classes = np.repeat([0, 1], [6, 2])  # class 1: two groups, one of them of all rows
    groups = [0, 0, 0, 1, 1, 1, 0, 0]
    with pytest.raises(InputError, match=r"class b in each of 2 folds, found 1 groups"):
        splits.cut(8, {}, data_of(folds=2), classes=classes, groups=groups)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"folds": 1}, "data.folds: expected 0 or at least 2, found 1"),
        ({"folds": -2}, "data.folds: expected 0 or at least 2, found -2"),
        ({"fold": 5}, "data.fold: expected 0 to 4, found 5"),
        ({"fold": -1}, "data.fold: expected 0 to 4, found -1"),
        ({"folds": 0, "fold": 2}, "data.fold: expected 0 without data.folds, found 2"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(InputError, match=f"^{message}"):
        splits.check_folds(data_of(**fields))


def own(folder, change=lambda row: row, **more):
    names = texts.files(folder, change=change)
    names["data.files.validation"] = ""
    return tasks.check_data(texts.load(names, **{"data__folds": 4} | more))


def grouped(row):
    return row | {"user": len(row["text_b"])}


def test_texts_by_fold(tmp_path):
    configs = [own(tmp_path, data__fold=fold) for fold in range(4)]
    parts = []
    for config in configs:
        found = text_sets.find(config.data)
        kept = {
            s: text_sets.open_split(found, config.data, s)
            for s in ("train", "validation")
        }
        assert len(kept["train"]) == 48
        parts += kept["validation"].places
        (note,) = text_sets.notes(found, config.data)
        fold = config.data.fold
        assert note == f"validation: 16 rows held out of train.jsonl, fold {fold} of 4"
    assert sorted(parts) == sorted(found.splits["train"]().places)
    records = [text_sets.provenance(found, c.data) for c in configs[:2]]
    assert records[0] != records[1]  # a run does not resume with other rows
    assert config_lib.differences(configs[0], configs[1]) == [
        "data.fold: workdir 0, now 1"
    ]


def test_all_folds_have_one_tokenizer(tmp_path):
    made = []
    for fold in (0, 1):
        config = own(tmp_path, data__fold=fold)
        found = text_sets.find(config.data)

        def split(name, found=found, config=config):
            return text_sets.open_split(found, config.data, name)

        made.append(text_task.make_tokenizer(config, split).to_str())
    assert made[0] == made[1]


def test_texts_by_group(tmp_path, monkeypatch):
    config = own(tmp_path, grouped, data__columns__group="user")
    found = text_sets.find(config.data)
    read, opened = tables.read, []
    monkeypatch.setattr(
        tables, "read", lambda *args, **more: opened.append(0) or read(*args, **more)
    )
    kept = [
        {len(text) for text in text_sets.open_split(found, config.data, s).second}
        for s in ("train", "validation")
    ]
    assert all(kept)
    assert not kept[0] & kept[1]
    text_sets.provenance(found, config.data)
    assert len(opened) == 2  # the rows, and their groups


def test_a_missing_column_or_group_is_refused(tmp_path):
    config = own(tmp_path, data__columns__group="user")
    with pytest.raises(
        InputError, match=r"a column 'user' \(data.columns.group\), foun"
    ):
        text_sets.open_split(text_sets.find(config.data), config.data, "train")
    (tmp_path / "b").mkdir()
    config = own(
        tmp_path / "b", lambda x: x | {"user": ""}, data__columns__group="user"
    )
    with pytest.raises(InputError, match=r"group in 'user' .*, found ''"):
        text_sets.open_split(text_sets.find(config.data), config.data, "train")


def test_folds_next_to_a_validation_file_are_refused(tmp_path):
    names = texts.files(tmp_path)
    with pytest.raises(InputError, match=r"^data.folds: expected 0 next to data.files"):
        tasks.check_data(texts.load(names, data__folds=4))


def test_images_by_fold():
    rows = []
    for fold in (0, 1, 2):
        data = tiny.config(data__folds=3, data__fold=fold).data
        found = image_sets.find(data)
        kept = image_sets.open_split(found, data, "validation")
        assert set(np.bincount(kept.labels)) <= set(range(35, 52))
        rows += kept.indices.tolist()
        assert len(image_sets.open_split(found, data, "train")) + len(kept) == 1257
        assert "fold" in image_sets.notes(found, data)[0]
    assert sorted(rows) == list(range(1257))
    assert len(image_sets.open_split(found, data, "test")) == 360


def test_images_by_group(tmp_path):
    pixels = RNG.integers(0, 256, (60, 8, 8)).astype(np.uint8)
    labels, users = np.arange(60) % 2, np.arange(60) // 5
    np.savez(tmp_path / "train.npz", x=pixels, y=labels, user=users)
    options = {
        "data__name": "npz",
        "data__dir": tmp_path,
        "data__num_classes": 2,
        "data__folds": 3,
    }
    data = tiny.config(**options, data__columns__group="user").data
    found = image_sets.find(data)
    kept = [
        {users[i] for i in image_sets.open_split(found, data, s).indices}
        for s in ("train", "validation", "test")
    ]
    assert sum(map(len, kept)) == 12
    assert set.union(*kept) == set(users)
    data = tiny.config(**options, data__columns__group="person").data
    with pytest.raises(
        InputError, match=r"array 'person' \(60,\) \(data.columns.group"
    ):
        image_sets.open_split(image_sets.find(data), data, "train")
    data = tiny.config(data__folds=3, data__columns__group="user").data
    with pytest.raises(
        InputError, match=r"^data.columns.group: expected no column for"
    ):
        image_sets.open_split(image_sets.find(data), data, "train")


def test_runs_of_earlier_versions_have_no_folds(tmp_path):
    for config in (tiny.config(), own(tmp_path, data__folds=0, data__validation=0.2)):
        stored = config.to_dict()
        del stored["data"]["folds"], stored["data"]["fold"]
        del stored["data"]["columns"]["group"]
        upgraded = ConfigDict(json.loads(json.dumps(stored)))
        config_lib.upgrade(upgraded)
        assert not config_lib.differences(upgraded, config)


def test_a_list_is_no_group():
    data = data_of()
    data.columns = ConfigDict({"group": "user"})
    dataset = Dataset({}, dict, groups=lambda: {"row 0": ["ann"]})
    with pytest.raises(InputError, match=r"^row 0: expected a text or number .*'ann'"):
        dataset.group_list(data, ["row 0"])


def test_a_group_without_rows_to_hold_out_is_refused(tmp_path):
    message = (
        "data.columns.group: expected none if no rows are held out of the training "
        "rows, found 'user'. Set data.folds, or remove it"
    )
    pixels = np.zeros((4, 8, 8), np.uint8)
    for split in splits.SPLITS:
        np.savez(tmp_path / f"{split}.npz", x=pixels, y=[0, 1, 0, 1], user=range(4))
    images = {"data__name": "npz", "data__dir": tmp_path, "data__num_classes": 2}
    names = texts.files(tmp_path)
    for config in (
        tiny.config(**images, data__columns__group="user"),
        texts.load(names, data__columns__group="user"),
    ):
        with pytest.raises(InputError) as error:
            tasks.check_data(config)
        assert str(error.value) == message
    tasks.check_data(tiny.config(**images, data__columns__group="user", data__folds=2))
