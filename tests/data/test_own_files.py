"""A workdir without the data that it was trained on."""

import json
import shutil

import numpy as np
import pytest
from helpers import texts, tiny, tiny_lm, tiny_nmt, tiny_sum
from PIL import Image

from rdrop_jax import config as config_lib
from rdrop_jax import evaluate as evaluate_program
from rdrop_jax import flags, predict, tasks
from rdrop_jax import train as train_program
from rdrop_jax.cli import export
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import pair_sets
from rdrop_jax.tasks.text_classification import text_sets
from rdrop_jax.training import workdir as workdir_lib

ONE_STEP = {
    "total_steps": 1,
    "eval__every": 1,
    "checkpoint__every": 1,
    "rdrop__alpha": 0,
}


def images(folder):
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        for label, value in (("dark", 0), ("light", 255)):
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (8, 8), value).save(place / f"{i}.png")
    names = {
        "data__name": "folder",
        "data__dir": folder,
        "data__num_classes": 0,
        "batch_size": 8,
    }
    return tiny.config(**names, **ONE_STEP)


def classes(folder):
    return texts.load(texts.files(folder), **ONE_STEP)


def language(folder):
    return tiny_lm.config_of(folder, **ONE_STEP)


CONFIGS = {
    "image_classification": images,
    "text_classification": classes,
    "translation": lambda f: tiny_nmt.config(tiny_nmt.write(f), **ONE_STEP),
    "summarization": lambda f: tiny_sum.config(tiny_sum.write(f), **ONE_STEP),
    "language_model": language,
}
INPUTS = {
    "image_classification": [np.zeros((8, 8, 1), np.uint8)],
    "text_classification": [("a text", "another")],
}


FAST = "text_classification"  # the other tasks take up to 15 s each to compile


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == FAST else pytest.mark.slow)
        for name in CONFIGS
    ],
)
def run(request, tmp_path_factory):
    """Name of a task, folder of its data, workdir of a finished run."""
    folder = tmp_path_factory.mktemp(request.param)
    data = folder / "data"
    data.mkdir()
    workdir = folder / "run"
    train_program.train(CONFIGS[request.param](data), workdir)
    return request.param, data, workdir


def lose(data, away, *splits):
    """Move the files of some splits away."""
    away.mkdir(exist_ok=True)
    for split in splits:
        for path in data.glob(f"{split}*"):
            shutil.move(path, away / path.name)


@pytest.fixture
def given(run, tmp_path):
    """The run, and a function that loses splits; they come back after the test."""
    name, data, workdir = run
    yield name, workdir, lambda *splits: lose(data, tmp_path / "away", *splits)
    for path in (tmp_path / "away").glob("*"):
        shutil.move(path, data / path.name)


@pytest.mark.parametrize("kept", ["validation", "test"])
def test_a_split_is_scored_without_the_files_of_the_other_splits(given, kept):
    _, workdir, lose = given
    whole = evaluate_program.evaluate(workdir, kept, "best")
    lose("train", *({"validation", "test"} - {kept}))
    assert evaluate_program.evaluate(workdir, kept, "best") == whole


def test_a_workdir_answers_and_exports_without_any_data(given, tmp_path):
    name, workdir, lose = given
    lose("train", "validation", "test", "text")
    (answer,) = predict.load(workdir)(INPUTS.get(name, ["a text"]))
    assert answer
    if workdir_lib.read(workdir).model.name in tasks.families().get(name, ()):
        assert export.export(workdir, tmp_path / "exported") == 1


def test_a_missing_file_is_named_by_the_program_that_needs_it(given):
    name, workdir, lose = given
    if name == "language_model":
        pytest.skip("its text is in the workdir")
    lose("validation", "train")
    field = "data.dir" if name == "image_classification" else "data.files.validation"
    with pytest.raises(InputError, match=f"^{field}: expected"):
        evaluate_program.evaluate(workdir, "validation", "best")


def test_scores_are_of_validation_if_there_is_no_test_data(tmp_path, capsys):
    names = texts.files(tmp_path)
    del names["data.files.test"]
    workdir = tmp_path / "run"
    texts.train(workdir, names, **ONE_STEP)
    scores = evaluate_program.evaluate(workdir, None, "best")
    assert "no test data" in capsys.readouterr().err
    result = json.loads((workdir / "result.json").read_text())
    assert scores == {"step": result["checkpoint_step"], **result["validation"]}
    with pytest.raises(InputError, match=r"--split: expected one of train, validation"):
        evaluate_program.evaluate(workdir, "test", "best")


def test_a_run_of_an_earlier_version_resumes_with_the_same_rows(tmp_path):
    names = texts.files(tmp_path)
    del names["data.files.validation"]
    config = texts.load(names, data__held_out=10)
    stored = config.to_dict()
    del stored["data"]["validation"], stored["data"]["test"]
    stored["data"]["held_out"] = 10
    (tmp_path / "config.json").write_text(json.dumps(stored))
    read = workdir_lib.read(tmp_path)
    assert not config_lib.differences(read, config)
    found = text_sets.find(read.data)
    kept = text_sets.open_split(found, read.data, "validation").places
    rows = np.sort(np.random.default_rng(0).permutation(64)[:10])
    assert [place.rsplit(" ", 1)[1] for place in kept] == [str(i + 1) for i in rows]
    assert text_sets.notes(found, read.data) == (
        "validation: 10 rows held out of train.jsonl",
    )
    table = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[5]["label"] = None
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    _, unlabelled = text_sets.notes(text_sets.find(read.data), read.data)
    assert unlabelled == "train: 1 rows without a label"


@pytest.mark.parametrize("task", [tiny_nmt, tiny_sum])
def test_pairs_of_missing_splits_are_held_out_by_share_or_number(tmp_path, task):
    (task.write(tmp_path, train=60) / "unused").touch()
    rows = [f"word{i} a\tother{i} b\n" for i in range(60)]
    (tmp_path / "rows.tsv").write_text("".join(rows))
    files = {"data__files__train": "rows.tsv", "data__files__validation": ""}
    columns = {"data__columns__source": 0, "data__columns__target": 1}
    config = task.config(
        tmp_path,
        **files,
        **columns,
        data__files__test="",
        data__validation=0.25,
        data__test=5,
    )
    found = pair_sets.files(config.data, ("source", "target"))
    sizes = {name: len(read()) for name, read in found.splits.items()}
    assert sizes == {"train": 40, "validation": 15, "test": 5}
    notes = found.splits["train"]().notes
    assert notes[0] == f"validation: 15 rows held out of {tmp_path / 'rows.tsv'}"
    config.data.test = 45.0
    found = pair_sets.files(config.data, ("source", "target"))
    with pytest.raises(InputError, match=r"^data.test: .* of the 60 training rows"):
        found.splits["train"]()


def test_the_presets_hold_out_pairs_if_their_default_files_are_missing(tmp_path):
    for language in ("en", "de"):
        (tmp_path / f"train.{language}").write_text("a b\n" * 20)
    config = flags.load(tiny_nmt.NMT + ":files", {"data.dir": str(tmp_path)})
    assert tasks.check_data(config).data.files.to_dict() == {
        "train": "train",
        "validation": "",
        "test": "",
    }
    config = flags.load(
        tiny_nmt.NMT + ":files",
        {"data.dir": str(tmp_path), "data.files.validation": "dev"},
    )
    with pytest.raises(InputError, match=r"^data.files.validation: expected .*dev.en"):
        tasks.check_data(config)
