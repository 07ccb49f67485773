"""The code of docs/own-task.md runs as printed, in the order of the page."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest

from rdrop_jax import flags, tasks
from rdrop_jax import train as train_program
from rdrop_jax.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "own-task.md"
BLOCKS = re.findall(r"<!-- run -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run_blocks(workdir):
    names = {"workdir": workdir}
    root, level = logging.getLogger(), logging.getLogger("rdrop_jax").level
    handlers = list(root.handlers)
    for block in BLOCKS:
        exec(block, names)
    root.handlers[:] = handlers
    logging.getLogger("rdrop_jax").setLevel(level)
    return names


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return run_blocks(tmp_path_factory.mktemp("own"))


def test_the_page_trains(page):
    assert page["result"]["step"] == 8
    assert set(page["result"]["validation"]) == {"accuracy", "loss"}
    assert page["result"]["data"] == page["task"].provenance()
    assert page["logits"].shape == (16, 3)
    lines = (page["workdir"] / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6, 8]
    assert all(r["kl"] > 0 for r in records if r["kind"] == "train")


def test_a_task_without_a_predictor_says_so(page):
    with pytest.raises(ValueError, match="with predictions, found my_task"):
        page["run"].predictor()


def test_a_task_without_validation_data_is_refused(page, tmp_path):
    test = {"test": page["task"].evaluators["test"]}
    task = replace(page["task"], evaluators=test)
    with pytest.raises(InputError, match=r"named validation, found \['test'\]"):
        page["train"](page["config"], tmp_path, task)


def test_callbacks_run_at_log_validation_and_save(page, tmp_path):
    calls = []
    callback = page["Callback"](
        log=lambda step, metrics: calls.append(("log", step, "lr" in metrics)),
        validation=lambda step, scores: calls.append(("validation", step, scores)),
        save=lambda step, state: calls.append(("save", step, int(state.step))),
    )
    only_saves = page["Callback"](save=lambda step, state: calls.append(step))
    config = page["config"].copy_and_resolve_references()
    config.total_steps, config.checkpoint.every = 4, 2
    page["train"](config, tmp_path, page["task"], callbacks=[callback, only_saves])
    scores = calls.pop(4)
    assert scores[:2] == ("validation", 4)
    assert set(scores[2]) == {"accuracy", "loss"}
    assert calls == [
        *[("log", 2, True), ("save", 2, 2), 2],
        *[("log", 4, True), ("save", 4, 4), 4],
    ]


def test_an_own_task_resumes_with_the_same_bits(page, tmp_path):
    config = page["config"].copy_and_resolve_references()
    config.total_steps = 4
    page["train"](config, tmp_path, page["task"])
    page["train"](page["config"], tmp_path, page["task"])
    ours = page["open_run"](tmp_path, "last", task=page["task"])
    theirs = page["open_run"](page["workdir"], "last", task=page["task"])
    assert ours.step == theirs.step == 8
    for a, b in zip(
        jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True
    ):
        assert (a == b).all()


def test_a_task_needs_a_name(page, tmp_path):
    config = page["config"].copy_and_resolve_references()
    config.task = ""
    with pytest.raises(ValueError, match="task: expected a name for the task, got ''"):
        page["train"](config, tmp_path, page["task"])


GET_CONFIG = """
def get_config(preset=""):
    config = base_config()
    config.total_steps = config.eval.every = config.checkpoint.every = 2
    config.batch_size = 16
    config.eval.metric = "accuracy"
    config.log.trackers = ()
    return finish(config)


def build(config):
    return task
"""


@pytest.fixture
def task_file(tmp_path):
    """The page's task in a file for the programs."""
    file = tmp_path / "my_task.py"
    imports = "from rdrop_jax.config import base_config, finish\n"
    file.write_text("".join([imports, *BLOCKS[:2], GET_CONFIG]))
    return file


def test_the_page_s_task_trains_from_a_file(task_file, tmp_path):
    config = flags.load(str(task_file), {})
    result = train_program.train(config, str(tmp_path / "run"))
    assert result["step"] == 2


def test_options_that_the_task_of_a_file_does_not_apply_are_refused(task_file):
    for field, value in (("views", "crop"), ("dropouts", "(0.1, 0.3)")):
        config = flags.load(str(task_file), {f"rdrop.{field}": value})
        with pytest.raises(InputError, match=rf"rdrop\.{field}: expected .* sets no"):
            tasks.build(config)


def test_options_that_a_given_task_does_not_apply_are_refused(page, tmp_path):
    config = page["config"].copy_and_resolve_references()
    config.rdrop.views = "crop"
    with pytest.raises(InputError, match="the task of my_task sets no views"):
        page["train"](config, tmp_path, page["task"])
