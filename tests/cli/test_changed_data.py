"""Evaluation after the data of a run were deleted or changed."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import texts, tiny, tiny_nmt, tiny_sum
from PIL import Image

from rdrop_jax import flags, tasks
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.image_classification import task as image_classification
from rdrop_jax.tasks.seq2seq import pair_sets
from rdrop_jax.tasks.text_classification import text_sets
from rdrop_jax.training import workdir as workdir_lib


def started(workdir, provenance):
    """A workdir that looks like that of a run with a checkpoint."""
    step = workdir / "checkpoints" / "step_1"
    step.mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    (workdir / "data.json").write_text(json.dumps(provenance))
    return workdir


def pictures(folder, kind, split, count):
    if kind == "npz":
        shape = (count, 8, 8)
        arrays = {"x": np.zeros(shape, np.uint8), "y": np.arange(count) % 2}
        np.savez(folder / f"my_{split}.npz", **arrays)
        return [folder / f"my_{split}.npz"]
    made, rows = [], []
    for i in range(count):
        name = f"{split}/{i % 2}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(folder / name)
        made.append(folder / name)
        rows.append(f"{name}\t{i % 2}\n")
    if kind == "table":
        (folder / f"{split}.tsv").write_text("".join(rows))
        return [folder / f"{split}.tsv"]
    return made


def images(folder, kind):
    name = "npz" if kind == "npz" else "folder"
    config = tiny.config(data__name=name, data__dir=folder, data__num_classes=2)
    if kind != "npz":
        config.unlock().data.classes = ("0", "1")
    return config


@pytest.mark.parametrize("kind", ["folder", "table", "npz"])
@pytest.mark.parametrize("lost", ["validation", "test"])
def test_a_deleted_split_of_images_is_not_cut_from_training(tmp_path, kind, lost):
    data = tmp_path / "data"
    data.mkdir()
    files = {s: pictures(data, kind, s, 20) for s in ("train", "validation", "test")}
    config = images(data, kind)
    found = image_sets.find(config.data)
    recorded = found.provenance()
    for path in files[lost]:
        path.unlink()
    if kind == "folder":
        for folder in (*(data / lost).iterdir(), data / lost):
            folder.rmdir()
    found = image_sets.find(config.data)
    with pytest.raises(InputError, match=f"^data.dir: expected {lost} images, which"):
        image_sets.open_split(found, config.data, lost, recorded)
    # The training images stay those of the run.
    assert len(image_sets.open_split(found, config.data, "train", recorded)) == 20
    workdir = started(tmp_path / "run", recorded)
    rows = image_classification.build(config, workdir).predictor
    with pytest.raises(InputError, match=f"expected {lost} images"):
        rows(tiny_mesh()).rows(lost)


def tiny_mesh():
    from rdrop_jax.training.mesh import make_mesh

    return make_mesh()


@pytest.mark.parametrize("kind", ["folder", "table", "npz"])
def test_held_out_images_are_those_of_the_run(tmp_path, kind):
    pictures(tmp_path, kind, "train", 20)
    config = images(tmp_path, kind)
    found = image_sets.find(config.data)
    recorded = found.provenance()
    assert len(image_sets.open_split(found, config.data, "test", recorded)) == 2
    assert image_sets.notes(found, config.data) == (
        "validation: 2 rows held out of the training images",
        "test: 2 rows held out of the training images",
    )
    pictures(tmp_path, kind, "train", 22)
    found = image_sets.find(config.data)
    with pytest.raises(InputError, match=r"^data.dir: .*(train|my_train.npz) has chan"):
        image_sets.open_split(found, config.data, "test", recorded)


def test_held_out_texts_are_those_of_the_run(tmp_path):
    names = texts.files(tmp_path)
    del names["data.files.validation"]
    data = texts.load(names, data__validation=10).data
    found = text_sets.find(data)
    recorded = found.provenance()
    assert len(text_sets.open_split(found, data, "validation", recorded)) == 10
    texts.write(tmp_path / "train.jsonl", texts.rows(65))
    found = text_sets.find(data)
    for split in ("validation", "train"):
        with pytest.raises(InputError, match=r"train.jsonl has changed"):
            text_sets.open_split(found, data, split, recorded)
    assert len(text_sets.open_split(found, data, "test", recorded)) == 24


@pytest.mark.parametrize("task", [tiny_nmt, tiny_sum])
def test_held_out_pairs_are_those_of_the_run(tmp_path, task):
    task.write(tmp_path, train=60)
    config = task.config(tmp_path, data__files__validation="", eval__batch_size=8)
    recorded = pair_sets.files(config.data, ("source", "target")).provenance()
    workdir = tmp_path / "run"
    tasks.build(config, workdir, resuming=False)
    started(workdir, recorded)
    mesh = tiny_mesh()
    rows = tasks.build(config, workdir).predictor(mesh).rows
    assert len(list(rows("validation"))) == 6
    task.write(tmp_path, train=61)
    rows = tasks.build(config, workdir).predictor(mesh).rows
    assert list(rows("test"))
    with pytest.raises(InputError, match=r"^data.files.train: .*train.* has changed"):
        rows("validation")


NAMES = [f"{split}/data.csv" for split in ("test", "train", "validation")]


def in_folders(folder, config, **columns):
    """A config of three files with one name, and its data."""
    for split, count in (("train", 40), ("validation", 10), ("test", 10)):
        (folder / split).mkdir(parents=True)
        lines = [f"{split} {i},{'ab'[i % 2]} {i}" for i in range(count)]
        text = "\n".join([",".join(columns.values()), *lines, ""])
        (folder / split / "data.csv").write_text(text)
    fields = {f"data.columns.{name}": column for name, column in columns.items()}
    for split in ("train", "validation", "test"):
        fields[f"data.files.{split}"] = f"{split}/data.csv"
    return flags.load(config, fields | {"data.dir": str(folder)})


def found_texts(data):
    return text_sets.find(data)


def found_pairs(data):
    return pair_sets.files(data, ("source", "target"))


FOLDERS = pytest.mark.parametrize(
    ("find", "config", "columns"),
    [
        (found_texts, "configs/glue.py:files", ("text", "label")),
        (found_pairs, "configs/nmt.py:files", ("source", "target")),
    ],
)


@FOLDERS
def test_files_of_one_name_have_a_checksum_each(tmp_path, find, config, columns):
    data = in_folders(tmp_path / "d", config, **{c: c for c in columns}).data
    recorded = find(data).provenance()
    assert sorted(recorded) == NAMES
    workdir_lib.check_unchanged(recorded, recorded, "data.files.train")
    workdir = started(tmp_path / "run", recorded)
    with (tmp_path / "d" / "train" / "data.csv").open("a") as file:
        file.write("more,a\n")
    changed = find(data).provenance()
    assert workdir_lib.changed_files(recorded, changed) == ("train/data.csv",)
    with pytest.raises(InputError, match=r"different data.*\n  train/data.csv: stored"):
        workdir_lib.record_data(changed, workdir)


@FOLDERS
@pytest.mark.parametrize("version", ["now", "base names", "full paths"])
def test_data_may_move(tmp_path, find, config, columns, version):
    data = in_folders(tmp_path / "d", config, **{c: c for c in columns}).data
    recorded = find(data).provenance()
    if version == "base names":
        recorded = {Path(name).name: sum for name, sum in recorded.items()}
    elif version == "full paths":
        recorded = {f"{data.dir}/{name}": sum for name, sum in recorded.items()}
    workdir = started(tmp_path / "run", recorded)
    (tmp_path / "d").rename(tmp_path / "moved")
    data.unlock().dir = str(tmp_path / "moved")
    now = find(data).provenance()
    train = {"train/data.csv": now["train/data.csv"]}
    if version != "base names":  # which have the checksum of the test file alone
        workdir_lib.check_unchanged(recorded, train, "data.files.train")
    workdir_lib.record_data(now, workdir)
    stored = json.loads((workdir / "data.json").read_text())
    assert sorted(stored) == NAMES
    with (tmp_path / "moved" / "validation" / "data.csv").open("a") as file:
        file.write("more,a\n")
    with pytest.raises(InputError, match=r"validation/data.csv: stored"):
        workdir_lib.record_data(find(data).provenance(), workdir)


def test_texts_are_held_out_of_files_in_parts(tmp_path):
    data = in_folders(
        tmp_path, "configs/glue.py:files", text="text", label="label"
    ).data
    (tmp_path / "train" / "data.csv").rename(tmp_path / "data-00000-of-00001.csv")
    data.unlock().files.train, data.validation = "data-*.csv", 4
    data.files.validation = data.files.test = ""
    found = text_sets.find(data)
    recorded = found.provenance()
    assert list(recorded) == ["data-00000-of-00001.csv"]
    assert len(text_sets.open_split(found, data, "validation", recorded)) == 4
