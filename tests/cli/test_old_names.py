"""Field names of version 0.1 in config files, on command lines and in workdirs."""

import json

import pytest

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.compare.comparison import read_comparison, stored_comparison
from rdrop_jax.compare.comparison_options import ComparisonOptions
from rdrop_jax.config.upgrades import ADDED
from rdrop_jax.errors import InputError
from rdrop_jax.training import workdir as workdir_lib

# Task, fields of version 0.1 and the same fields of this version.
RENAMES = [
    ("image_classification", {"model.variant": "L"}, {"model.size": "L"}),
    ("text_classification", {"data.held_out": 500}, {"data.validation": 500.0}),
    ("text_classification", {"model.variant": "large"}, {"model.size": "large"}),
    ("translation", {"batch_size": 512}, {"batch_tokens": 512}),
    (
        "translation",
        {"model.name": "transformer_vaswani_wmt_en_de_big"},
        {"model.name": "transformer", "model.size": "vaswani_wmt_en_de_big"},
    ),
    ("summarization", {"batch_size": 512}, {"batch_tokens": 512}),
    (
        "summarization",
        {"model.name": "bart.base"},
        {"model.name": "bart", "model.size": "base"},
    ),
    (
        "language_model",
        {"model.name": "mini"},
        {"model.name": "transformer", "model.size": "mini"},
    ),
    (
        "language_model",
        {"model.name": "transformer_lm_wiki103"},
        {"model.name": "adaptive_transformer", "model.size": "wiki103"},
    ),
    ("translation", {"log.tensorboard": False}, {"log.trackers": []}),
    ("language_model", {"log.tensorboard": True}, {"log.trackers": ["tensorboard"]}),
]
FILE = """
from ml_collections import ConfigDict
from rdrop_jax.config import base_config

def get_config():
    c = base_config()
    c.task = "{task}"
    c.rdrop.alpha = 0.0
    {lines}
    return c
"""


@pytest.fixture(autouse=True)
def every_message():
    flags._warn_once.cache_clear()


def source(task, fields):
    lines = [f"c.{name} = {value!r}" for name, value in fields.items()]
    return FILE.format(task=task, lines="\n    ".join(lines))


def said(caplog, old, new):
    """The message about the old names; base_config's batch_size may have one too."""
    wanted = "model.name" if "model.name" in old else next(iter(old))
    (message,) = [text for text in caplog.messages if f"{wanted}" in text]
    assert ": deprecated, use " in message
    assert all(name in message for name in new)
    return message


def check(config, old, new):
    flat = config_lib.flatten(config)
    assert {name: flat[name] for name in new} == new
    assert all(isinstance(flat[name], type(value)) for name, value in new.items())
    assert not flat.keys() & (old.keys() - new.keys())


@pytest.mark.parametrize(("task", "old", "new"), RENAMES)
def test_a_config_file_with_old_names(task, old, new, tmp_path, caplog):
    path = tmp_path / "mine.py"
    path.write_text(source(task, old))
    config = flags.load(str(path), {})
    check(config, old, new)
    assert set(ADDED.get(task, {})) <= set(config_lib.flatten(config))
    message = said(caplog, old, new)
    assert message.startswith(f"--config {path}: {next(iter(old))}")


@pytest.mark.parametrize(("task", "old", "new"), RENAMES)
def test_a_workdir_with_old_names(task, old, new, tmp_path, caplog):
    stored = config_lib.base_config()
    stored.task = task
    stored.update_from_flattened_dict(old)
    (tmp_path / "config.json").write_text(json.dumps(stored.to_dict()))
    check(workdir_lib.read(tmp_path), old, new)
    assert not caplog.messages


def test_a_workdir_and_a_comparison_without_added_fields(tmp_path):
    stored = config_lib.base_config()
    stored.task = "language_model"
    base = config_lib.flatten(stored)
    del stored.rdrop["views"], stored.rdrop["views_rate"]
    (tmp_path / "config.json").write_text(json.dumps(stored.to_dict()))
    found = workdir_lib.read(tmp_path)
    assert (found.rdrop.views, found.rdrop.views_rate) == ("none", None)
    options = ComparisonOptions("lm.py", {}, (1.0,), 1, 1, (), {}, "loss", "min", {})
    content = {"options": options.to_dict(), "probe": {}, "versions": {}}
    content["base"] = {k: v for k, v in base.items() if "views" not in k}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    assert stored_comparison(options, base, tmp_path)
    with pytest.raises(InputError, match=r"rdrop.views: workdir 'none', now 'crop'"):
        stored_comparison(options, base | {"rdrop.views": "crop"}, tmp_path)


PRESETS = {
    "image_classification": "vit.py",
    "text_classification": "glue.py:files",
    "translation": "nmt.py",
    "summarization": "summarization.py",
    "language_model": "lm.py",
}


@pytest.mark.parametrize(("task", "old", "new"), RENAMES)
def test_a_command_line_with_old_names(task, old, new, caplog):
    spec = f"configs/{PRESETS[task]}"
    given = {name: str(value) for name, value in old.items()}
    check(flags.load(spec, given), old, new)
    message = said(caplog, old, new)
    assert message.startswith(f"--config.{next(iter(old))}")


def test_a_comparison_with_old_names(tmp_path):
    path = tmp_path / "comparison.json"
    stored = {"options": {}, "probe": {}, "versions": {}}
    stored["base"] = {"task": "translation", "batch_size": 5, "seed": 1}
    path.write_text(json.dumps(stored))
    base = {"task": "translation", "batch_tokens": 5, "seed": 1}
    assert read_comparison(path)["base"] == base


def test_the_later_of_an_old_and_a_new_name_counts():
    both = {"data.held_out": "5", "data.validation": "7"}
    found, notes = config_lib.renamed("text_classification", both)
    assert found == {"data.validation": "7"}
    assert notes == ["data.held_out: deprecated, use data.validation"]
    config = flags.load("configs/glue.py:files", dict(reversed(both.items())))
    assert config.data.validation == 5.0


def test_an_own_file_that_extends_a_preset(tmp_path, caplog):
    """The old name of a model gives its size, whatever the preset's size is."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from configs.lm import lm\n\ndef get_config():\n    c = lm()\n"
        "    c.model.name = 'transformer_lm_wiki103'\n    return c\n"
    )
    model = flags.load(str(path), {}).model
    assert (model.name, model.size) == ("adaptive_transformer", "wiki103")
    path.write_text(
        "from configs.nmt import nmt\n\ndef get_config():\n    c = nmt()\n"
        "    c.batch_size = 512\n    return c\n"
    )
    config = flags.load(str(path), {})
    assert config.batch_tokens == 512
    assert "batch_size" not in config


def test_a_base_config_with_tokens_needs_no_deletion(tmp_path, caplog):
    path = tmp_path / "mine.py"
    path.write_text(source("translation", {"batch_tokens": 512}))
    config = flags.load(str(path), {})
    assert config.batch_tokens == 512
    assert "batch_size" not in config
    assert not caplog.messages


def test_old_names_of_another_task_are_typos():
    with pytest.raises(InputError, match=r"data.held_out: no such field"):
        flags.load("configs/vit.py", {"data.held_out": "5"})


def test_scratch_settings_with_old_names(tmp_path):
    path = tmp_path / "mine.py"
    text = source("text_classification", {"init_from": "weights", "data.held_out": 5})
    path.write_text(text + 'SCRATCH = {"": {"data.held_out": 9}}\n')
    assert flags.load(str(path), {}).data.validation == 5.0
    assert flags.load(str(path), {"init_from": ""}).data.validation == 9.0
