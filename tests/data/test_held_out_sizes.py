"""data.validation and data.test: shares and numbers, next to files or not."""

import json

import pytest
from helpers import texts, tiny_lm, tiny_nmt, tiny_sum

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.language_modeling import running_text
from rdrop_jax.training import workdir as workdir_lib

LINES = [f"line {i:03d}" for i in range(100)]


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({}, [90, 5, 5]),
        ({"validation": None, "test": None}, [90, 5, 5]),
        ({"validation": 0.2}, [75, 20, 5]),
        ({"validation": 7.0, "test": 0.1}, [83, 7, 10]),
        ({"test": 11.0}, [84, 5, 11]),
        ({"validation": 1.0, "test": 1.0}, [98, 1, 1]),
    ],
)
def test_running_text_is_held_out_by_share_or_lines(sizes, wanted):
    found = running_text.hold_out({"train": LINES}, sizes)
    assert [len(found[s]) for s in ("train", "validation", "test")] == wanted
    assert [*found["train"], *found["validation"], *found["test"]] == LINES


def test_a_size_of_a_split_with_a_file_changes_nothing():
    found = running_text.hold_out({"train": LINES, "test": ["a"]}, {"validation": 3.0})
    assert [len(found[s]) for s in ("train", "validation", "test")] == [97, 3, 1]


@pytest.mark.parametrize("size", [0.0, -1.0, 100.0, 1e300, 0.999, float("nan")])
def test_running_text_keeps_lines_for_every_split(size):
    with pytest.raises(InputError, match=r"^data.validation: .* of the 100 lines"):
        running_text.hold_out({"train": LINES}, {"validation": size})


def language(folder, **overrides):
    (folder / "held.txt").write_text("a b\nc d\n")
    path = str(folder / "held.txt")
    return tiny_lm.config_of(
        folder, **overrides, data__files__validation=path, data__files__test=path
    )


MAKE = {
    "text_classification": lambda f, **more: texts.load(texts.files(f), **more),
    "translation": lambda f, **more: tiny_nmt.config(tiny_nmt.write(f), **more),
    "summarization": lambda f, **more: tiny_sum.config(tiny_sum.write(f), **more),
    "language_model": language,
}


@pytest.mark.parametrize("task", MAKE)
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_size_next_to_a_file_is_refused(tmp_path, task, split):
    tasks.check_data(MAKE[task](tmp_path))  # the preset's size gives way
    with pytest.raises(InputError, match=rf"^data.{split}: .* Remove one of them"):
        tasks.check_data(MAKE[task](tmp_path, **{f"data__{split}": 0.2}))


def test_the_earlier_name_of_a_size_is_refused_next_to_a_file(tmp_path):
    with pytest.raises(InputError, match=r"^data.validation: .* Remove one of them"):
        texts.load(texts.files(tmp_path), data__held_out=5)


def test_a_language_model_reports_and_resumes_what_is_held_out(tmp_path):
    config = tiny_lm.config_of(tmp_path, data__validation=20)
    task = tasks.build(config)
    assert task.report.notes()[0].startswith("validation: 140 tokens held out of ")
    plain = tiny_lm.config_of(tmp_path)
    stored = plain.to_dict()
    del stored["data"]["validation"], stored["data"]["test"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert not config_lib.differences(workdir_lib.read(tmp_path), plain)
