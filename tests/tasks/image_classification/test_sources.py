"""Where images come from: folders, tables, npz, prepared archives, the catalogue."""

import json

import numpy as np
import pytest
from helpers.pictures import encoded, noise, write_folder
from helpers.tiny import VIT, train
from PIL import Image

from rdrop_jax import flags, tasks
from rdrop_jax.data import prepared
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.predict import load
from rdrop_jax.tasks.image_classification import image_sets

CLASSES = ("ant", "bee", "cat")
LABELS = np.arange(12) % 3


def config(name, root, **more):
    changed = {"data.name": name, "data.dir": str(root), "data.num_classes": "0"}
    return flags.load(VIT, changed | {k.replace("__", "."): v for k, v in more.items()})


def splits(name, root, **more):
    data = tasks.check_data(config(name, root, **more)).data
    found = image_sets.find(data)
    return data, {s: image_sets.open_split(found, data, s) for s in SPLITS}


def refused(name, root, message, **more):
    with pytest.raises(InputError, match=message):
        splits(name, root, **more)


def test_folders_of_splits(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        images = noise(12, seed=number)
        write_folder(tmp_path / split, images, LABELS, CLASSES)
    data, found = splits("folder", tmp_path)
    assert tuple(data.classes) == CLASSES
    assert data.num_classes == 3
    for split, rows in found.items():
        assert len(rows) == 12
        np.testing.assert_array_equal(rows.labels, sorted(LABELS))
        name = {"validation": "val"}.get(split, split)
        assert rows.name(0) == str(tmp_path / name / "ant" / "00000.png")
        assert rows[4]["image"] == tmp_path / name / "bee" / "00001.png"


def test_one_folder_is_cut_by_the_split_seed(tmp_path):
    write_folder(tmp_path, noise(12), LABELS, CLASSES)
    sizes = {"data__validation": "0.25", "data__test": "2"}
    found = splits("folder", tmp_path, **sizes)[1]
    assert {s: len(rows) for s, rows in found.items()} == {
        "train": 7,
        "validation": 3,
        "test": 2,
    }
    names = [rows.name(i) for rows in found.values() for i in range(len(rows))]
    assert len(set(names)) == 12
    again = splits("folder", tmp_path, **sizes)[1]
    other = splits("folder", tmp_path, data__split_seed="1", **sizes)[1]
    held = [[r["test"].name(i) for i in range(2)] for r in (found, again, other)]
    assert held[0] == held[1] != held[2]
    for bad in ("0", "0.99", "12"):
        refused("folder", tmp_path, "selects 1 to 10 of the", data__test=bad)


def test_tables(tmp_path):
    for row, image in enumerate(noise(6)):
        (tmp_path / f"{row}.png").write_bytes(encoded(image))
    lines = [f"{row}.png\t{CLASSES[row % 3]}" for row in range(6)]
    (tmp_path / "labels.tsv").write_text("\n".join(lines) + "\n\n")
    for root in (tmp_path, tmp_path / "labels.tsv"):
        _, found = splits("folder", root, data__validation="1", data__test="1")
        assert sum(map(len, found.values())) == 6
    (tmp_path / "train.tsv").write_text("\n".join(lines[:3]))
    (tmp_path / "test.tsv").write_text("\n".join(lines[3:]))
    _, found = splits("folder", tmp_path, data__validation="1")
    np.testing.assert_array_equal(found["test"].labels, [0, 1, 2])
    photos = tmp_path / "photos"  # links to images that lie elsewhere
    photos.mkdir()
    for row in range(3):
        (photos / f"{row}.png").symlink_to(tmp_path / f"{row}.png")
    (photos / "train.tsv").write_text("\n".join(lines[:3]))
    _, found = splits("folder", photos, data__validation="1", data__test="1")
    assert found["train"].name(0).startswith(str(photos))
    for line, message in (
        ("../x.png\tant", r"train\.tsv, line 1: expected a path below"),
        ("/etc/passwd\tant", "expected a path below"),
        ("0.png ant", r"expected a path and a class, found \['0.png ant'\]"),
        ("0.png\t", "expected a path and a class"),
    ):
        (tmp_path / "train.tsv").write_text(line)
        refused("folder", tmp_path, message)
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    (tmp_path / "test.tsv").write_text("\n")
    refused("folder", tmp_path, "expected test images in .*, found none")
    for name in ("val", "valid"):
        (tmp_path / f"{name}.tsv").write_text(lines[0])
    refused("folder", tmp_path, r"one table per split, found .*val\.tsv, .*valid\.tsv")


def test_folders_that_cannot_be_used(tmp_path):
    refused("folder", tmp_path / "none", "no such file or folder")
    refused("folder", tmp_path, "expected a folder per class in")
    write_folder(tmp_path, noise(4), [0] * 4, CLASSES)
    refused("folder", tmp_path, "at least two classes in .*, found ant")
    (tmp_path / "bee").mkdir()
    refused("folder", tmp_path, r"expected images \(.*\) in .*bee, found none")
    write_folder(tmp_path / "train", noise(4), [0, 1, 0, 1], CLASSES)
    write_folder(tmp_path / "test", noise(4), [0, 1, 2, 2], CLASSES)
    refused(
        "folder", tmp_path, r"classes of the training images, ant, bee, found 'cat'"
    )


def test_npz(tmp_path):
    images = noise(6)
    np.savez(tmp_path / "my_train.npz", x=images, y=LABELS[:6], classes=CLASSES)
    np.savez(tmp_path / "my_test.npz", image=images[..., 0], label=LABELS[:6])
    data, found = splits("npz", tmp_path, data__validation="2")
    assert tuple(data.classes) == CLASSES
    assert found["test"][0]["image"].shape == (8, 8, 1)
    assert {s: len(rows) for s, rows in found.items()} == {
        "train": 4,
        "validation": 2,
        "test": 6,
    }
    refused(
        "npz",
        tmp_path,
        "expected 3, the number of classes of npz",
        data__num_classes="4",
    )
    for arrays, message in (
        (
            {"x": images},
            "expected arrays x and y or image and label or images and labels, found x",
        ),
        ({"x": images / 255, "y": LABELS[:6]}, "expected x as uint8"),
        ({"x": images, "y": LABELS[:5]}, "expected y as 6 integers"),
        ({"x": images, "y": np.array([print] * 6)}, "found pickled objects"),
        ({"x": images[:0], "y": LABELS[:0]}, "at least one"),
    ):
        np.savez(tmp_path / "my_train.npz", allow_pickle=True, **arrays)
        refused("npz", tmp_path, message, data__num_classes="3")
    (tmp_path / "my_train.npz").write_bytes(b"PK broken")
    refused("npz", tmp_path, "expected an .npz file of plain arrays")
    np.savez(tmp_path / "my_train.npz", x=images, y=LABELS[:6])
    refused(
        "npz",
        tmp_path,
        "data.num_classes: expected the number of classes, because npz has",
    )


@pytest.mark.parametrize(
    ("file", "split"), [("latest_train", "test"), ("trainval", "validation")]
)
def test_a_file_of_two_splits_is_refused(tmp_path, file, split):
    np.savez(tmp_path / f"{file}.npz", x=noise(6), y=LABELS[:6], classes=CLASSES)
    refused("npz", tmp_path, f"separate file for train, found .*{file}.npz, .* {split}")


def test_prepared(tmp_path):
    """A folder of CIFAR-100 as version 0.1 prepared it."""
    writer = prepared.Writer(tmp_path / "cifar100", {})
    for split, count in (("train", 6), ("test", 3)):
        images = [
            prepared.record(i % 2, encoded(x)) for i, x in enumerate(noise(count))
        ]
        list(writer.write(split, count, lambda start, rows=images: rows[start:], count))
    writer.finish(["ant", "bee"])
    data, found = splits("cifar100", tmp_path, data__validation="2")
    assert data.num_classes == 2
    assert (len(found["train"]), len(found["validation"])) == (4, 2)
    assert [found["test"][i]["label"] for i in range(3)] == [0, 1, 0]
    assert found["test"].name(1) == f"{tmp_path / 'cifar100'}, test, record 1"
    refused("cifar100", tmp_path / "x", r"no such folder\. Use .*=hf:uoft-cs/cifar100")


@pytest.mark.parametrize("name", ["imagenet2012", "tfds:mnist"])
def test_what_is_not_prepared_names_the_command(tmp_path, monkeypatch, name):
    monkeypatch.delenv("RDROP_DATA_DIR", raising=False)
    refused(name, tmp_path, f"rdrop_jax.prepare {name} --data_dir {tmp_path}")
    refused(name, "", rf"RDROP_DATA_DIR is set.*(?s:.)*prepare {name} --data_dir DATA")
    monkeypatch.setenv("RDROP_DATA_DIR", str(tmp_path))
    gated = "(?s:.)*accept the terms at .*ILSVRC/imagenet-1k" * name.startswith("imag")
    refused(name, "", f"rdrop_jax.prepare {name} --data_dir {tmp_path}{gated}")


def test_the_catalogue_is_read_without_tensorflow(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for row, image in enumerate(noise(6)):
                label = CLASSES[row % 3]
                yield row, {"image": Image.fromarray(image), "label": label}

    builder = Shapes(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    data, found = splits("tfds:shapes", tmp_path, data__test="1", data__validation="1")
    assert tuple(data.classes) == CLASSES
    assert sum(map(len, found.values())) == 6
    wanted = {(encoded_label, x.tobytes()) for x, encoded_label in _read(found)}
    images = noise(6)
    assert {x.tobytes() for x in images} == {x for _, x in wanted}
    info = tmp_path / "shapes" / "1.0.0" / "dataset_info.json"
    whole = json.loads(info.read_text())
    parts = [part | {"name": "all"} for part in whole["splits"]]
    info.write_text(json.dumps(whole | {"splits": parts}))
    refused("tfds:shapes", tmp_path, "train on: all, found none")
    info.write_text(json.dumps(whole | {"fileFormat": "tfrecord"}))
    refused("tfds:shapes", tmp_path, "expected the format array_record, .* tfrecord")


def _read(found):
    from rdrop_jax.tasks.image_classification.decode import Decoded

    for rows in found.values():
        source = Decoded(rows, channels=3, num_classes=3, skip_bad=False)
        for i in range(len(source)):
            yield np.asarray(source[i]["image"]), int(source[i]["label"])


@pytest.mark.slow
def test_the_same_images_from_npz_and_from_a_folder_train_alike(tmp_path):
    images, labels = noise(24), np.sort(np.arange(24) % 3)
    (tmp_path / "npz").mkdir()
    for split in ("train", "test"):
        np.savez(tmp_path / "npz" / f"{split}.npz", x=images, y=labels, classes=CLASSES)
        write_folder(tmp_path / "png" / split, images, labels, CLASSES)
    settings = {
        "data__channels": 3,
        "data__num_classes": 0,
        "data__validation": 8,
        "data__crop": "random",
        "data__flip": True,
        "batch_size": 8,
        "eval__batch_size": 8,
    }
    results = []
    for name, root, workers in (("npz", "npz", 0), ("folder", "png", 2)):
        place = {"data__name": name, "data__dir": tmp_path / root}
        workdir = tmp_path / f"run_{name}"
        found = train(workdir, **settings, **place, data__workers=workers)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        for line in map(json.loads, lines):
            line.pop("steps_per_second", None)
            line.pop("data_wait", None)
            results.append(line)
        results.append({k: found[k] for k in ("validation", "test", "checkpoint_step")})
    half = len(results) // 2
    assert results[:half] == results[half:]
    # The names of classes are in the workdir: no dataset is needed to answer.
    photo = next((tmp_path / "png" / "test").rglob("*.png"))
    answers = load(tmp_path / "run_folder")([photo, images[0], noise(1, 20)[0]])
    assert answers[0]["input"] == str(photo)
    assert all(a["label"] == CLASSES[a["id"]] for a in answers)
    more = tmp_path / "png" / "train" / "ant" / "more.png"
    more.write_bytes(photo.read_bytes())
    with pytest.raises(
        InputError, match=r"different data.*\n  train: stored 24 .* now 25 "
    ):
        train(workdir, **settings, **place)
    more.unlink()
    assert train(workdir, **settings, **place) == found
    (tmp_path / "png" / "train" / "dog").mkdir()
    Image.fromarray(images[0]).save(tmp_path / "png" / "train" / "dog" / "x.png")
    with pytest.raises(InputError, match=r"data\.classes: workdir"):
        train(workdir, **settings, **place)
