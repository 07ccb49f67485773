"""Rows of a classifier head follow class names: files, exports and workdirs."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import messages
from helpers.texts import GLUE, TINY
from helpers.vit_files import MODEL, PARITY

from rdrop_jax import flags, tasks
from rdrop_jax.cli import run
from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import head_classes
from rdrop_jax.pretrained.initialize import Weights, merge
from rdrop_jax.tasks.image_classification import vit_model

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.mark.parametrize(
    ("stored", "wanted", "rows", "note"),
    [
        ("a b", "a b", None, ""),
        ("b a", "a b", (1, 0), "rows reordered by class name, from b, a to a, b"),
        ("A B", "a b", None, "classes A, B loaded as a, b"),
        ("CON NEU ENT", "ent neu con", (2, 1, 0), "reordered by class name"),
        ("LABEL_0 LABEL_1", "a b", None, r"weights \(LABEL_0, LABEL_1\): rows matched"),
        ("LABEL_0 LABEL_1", "LABEL_1 LABEL_0", (1, 0), "reordered"),
        ("a b", "LABEL_0 LABEL_1", None, "unknown for the data"),
        ("a b", "0 1", None, r"for the data \(0, 1\): rows matched by position"),
        ("0 1", "a b", None, r"for the weights \(0, 1\): rows matched by position"),
        ("1 0", "0 1", (1, 0), "reordered"),
        ("", "a b", None, "class names unknown for the weights: rows matched by pos"),
        ("a b", "", None, "class names unknown for the data: rows matched by position"),
    ],
)
def test_rows_follow_names(stored, wanted, rows, note):
    found = head_classes.order(stored.split(), wanted.split())
    assert found.matched
    assert found.rows in (rows, rows and tuple(range(len(rows))))
    assert re.search(note, found.note) if note else not found.note


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("a b", "1 2"),
        ("a b", "a c"),
        ("a b c", "a b"),
        ("a", "a b"),
        ("A a", "a b"),
        ("a b", "A a"),
    ],
)
def test_other_classes_match_nothing(stored, wanted):
    found = head_classes.order(stored.split(), wanted.split())
    assert not found.matched
    assert found.note.startswith("the weights have the classes")


def test_long_lists_of_classes_are_shortened():
    note = head_classes.order([f"class {i}" for i in range(1000)], ["x", "y"]).note
    assert "class 4, ... (1000 in all), the data x, y" in note
    assert len(note) < 200


def test_white_space_around_names_does_not_count():
    assert head_classes.order([" b ", "a"], ["a", "b"]).rows == (1, 0)


def test_the_merge_moves_rows_of_kernel_and_bias():
    template = {"head": {"bias": np.zeros(2), "kernel": np.zeros((3, 2))}}
    kernel = np.arange(6.0).reshape(3, 2)
    arrays = {"head/bias": np.array([1.0, 2.0]), "head/kernel": kernel}
    weights = Weights(arrays, classes=("b", "a"))
    params, notes = merge(template, weights, classes=("a", "b"))
    np.testing.assert_array_equal(params["head"]["bias"], [2, 1])
    np.testing.assert_array_equal(params["head"]["kernel"], kernel[:, ::-1])
    assert notes == ["head: rows reordered by class name, from b, a to a, b"]
    params, notes = merge(template, weights, classes=("a", "c"))
    assert not np.any(params["head"]["kernel"])
    (note,) = notes
    assert note.startswith(
        "head: not loaded; head/bias, head/kernel re-initialized: the w"
    )
    assert "\n" not in note


def images_folder(tmp_path, **config):
    folder = Path(shutil.copytree(PARITY, tmp_path / "model"))
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old | config))
    return folder


def by_id(names):
    return {str(i): name for i, name in enumerate(names)}


def load_images(folder, names=NAMES):
    images = vit_model.Preprocessing(16, 3, [0.5] * 3, [0.5] * 3, names)
    family = vit_model.family(MODEL, images)
    blank = jnp.zeros((1, 16, 16, 3))
    template = MODEL.init(jax.random.key(0), blank, train=False)["params"]
    return merge(
        template, family.read(folder), classes=family.classes, reinit=("head",)
    )


def test_an_image_folder_is_reordered_by_id2label(tmp_path):
    plain, _ = load_images(images_folder(tmp_path / "a", id2label=by_id(NAMES)))
    names = NAMES[::-1]
    folder = images_folder(tmp_path / "b", id2label=by_id(names), label2id=None)
    params, notes = load_images(folder)
    np.testing.assert_array_equal(
        params["head"]["kernel"], np.asarray(plain["head"]["kernel"])[:, ::-1]
    )
    assert any(note.startswith("head: rows reordered") for note in notes)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1], "expected names by id, got"),
        ({}, "expected names by id, got"),
        ({"0": "a", "2": "b"}, "expected the ids 0 to 1, got 0, 2"),
        ({"x": "a"}, "expected the ids 0 to 0, got x"),
        ({"0": "a", "00": "b"}, "expected the ids 0 to 1"),
        ({"0": "a", "1": "a "}, "expected different names, got 'a' twice"),
        ({"0": "a", "1": ""}, "expected a name for each id, got ''"),
        ({"0": "a", "1": ["b"]}, r"expected a name for each id, got \['b'\]"),
        ({"0": "a", "1": None}, "expected a name for each id, got None"),
        (
            {"0": "a", "1": "b"},
            r"expected a name for each row of the head.*\(5,\), got 2 names",
        ),
    ],
)
def test_bad_id2label_is_one_clear_line(tmp_path, bad, message):
    folder = images_folder(tmp_path, id2label=bad)
    with pytest.raises(InputError, match=f"config.json: id2label: {message}") as error:
        load_images(folder)
    assert "\n" not in str(error.value)


def test_id2label_is_used_where_label2id_disagrees(tmp_path):
    back = {name: i for i, name in enumerate(reversed(NAMES))}
    folder = images_folder(tmp_path, id2label=by_id(NAMES), label2id=back)
    _, notes = load_images(folder)
    assert any("label2id disagrees with id2label; id2label is used" in n for n in notes)
    assert not any("reordered" in note for note in notes)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of one step with the classes bad and good."""
    from rdrop_jax import train as train_program

    folder = tmp_path_factory.mktemp("classes")
    rows = [{"text": f"film {i}", "label": ("bad", "good")[i % 2]} for i in range(16)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(text)
    train_program.train(text_config(folder, ("bad", "good")), folder / "run")
    return folder


def text_config(folder, names, **more):
    files = {f"data.files.{s}": "rows.jsonl" for s in ("train", "validation")}
    config = flags.load(
        f"{GLUE}:files", TINY | files | {"data.dir": str(folder)} | more
    )
    with config.unlocked():
        config.data.classes = names
    return config


def started(folder, names, source, **more):
    """Head of a task that starts from a source, and lines of the log."""
    config = text_config(folder, names, **more)
    task = tasks.build(config, folder / "run")
    weights = run.open_weights(str(source), task)
    new = task.init(jax.random.key(1))
    with messages.collected() as lines:
        params = run.initializer(weights, task, "")(new)
    return (
        np.asarray(params["head"]["kernel"]),
        lines,
        np.asarray(new["head"]["kernel"]),
    )


@pytest.mark.parametrize("labels", ["classes", "multilabel"])
@pytest.mark.parametrize(
    "exported", [pytest.param(False, marks=pytest.mark.slow), True]
)
def test_a_text_head_follows_names(workdir, exported, labels, tmp_path):
    source = workdir / "run"
    stored = run.open_run(source).params["head"]["kernel"]
    if exported:
        from rdrop_jax import export

        source = tmp_path / "exported"
        export.export(workdir / "run", source)
    kind = {"data.labels": labels}
    kernel, lines, _ = started(workdir, ("bad", "good"), source, **kind)
    np.testing.assert_array_equal(kernel, stored)
    assert not lines
    kernel, lines, _ = started(workdir, ("Good", "bad"), source, **kind)
    np.testing.assert_array_equal(kernel, np.asarray(stored)[:, ::-1])
    assert lines == [
        "init_from: head: rows reordered by class name, from bad, good to Good, bad"
    ]
    kernel, lines, new = started(workdir, ("neg", "pos"), source, **kind)
    np.testing.assert_array_equal(kernel, new)
    assert lines == [
        "init_from: head: not loaded; head/bias, head/kernel re-initialized: the "
        "weights have the classes bad, good, the data neg, pos; to keep the head, use "
        "the same names in both"
    ]
