"""Presets for a user's own data, and the presets that the documentation names."""

import re
from pathlib import Path

import pytest

from rdrop_jax import flags

ROOT = Path(__file__).parents[2]
ADDS = "extending.md"  # adds a preset and has its own test
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = sorted(
    {
        match
        for page in PAGES
        if page.name != ADDS
        for match in re.findall(
            r"\b(?:configs/)?((?:vit|nmt|lm|glue|summarization)\.py:\w+)",
            page.read_text(),
        )
    }
)


COMMAND = (
    r"rdrop[-_]jax[ .](?:train|compile|compare) .*?--config ([\w/]+\.py(?::\w+)?)(.*)"
)
FIELD = r"--config\.([\w.]+)=([^\s\[]+)"
COMMANDS = [
    (spec, dict(re.findall(FIELD, fields)))
    for page in [*PAGES, *(ROOT / "configs").glob("*.py")]
    if page.name not in (ADDS, "own-task.md")  # which add a task
    for spec, fields in re.findall(COMMAND, page.read_text().replace("\\\n", " "))
]


def test_every_preset_in_the_documentation_exists():
    assert "vit.py:folder" in NAMED
    for name in NAMED:
        flags.load(f"configs/{name}", {})


def test_every_command_in_the_documentation_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) > 50
    for spec, fields in COMMANDS:
        config = flags.load(spec, {n: x.strip("`\"'") for n, x in fields.items()})
        assert not (config.data.name.startswith("hf:") and config.data.dir), spec


@pytest.mark.parametrize(
    "name",
    ["vit.py:folder", "glue.py:files", "nmt.py:files", "lm.py:files", "lm.py:chars"],
)
def test_presets_for_own_data_start_with_alpha_1(name):
    config = flags.load(f"configs/{name}", {})
    assert config.rdrop.alpha == 1.0
    assert config.accum_steps == 1


def test_translation_of_own_files_has_the_dropout_of_the_results():
    assert flags.load("configs/nmt.py:files", {}).model.dropout == 0.2


@pytest.mark.parametrize(
    ("name", "size", "with_weights", "from_scratch"),
    [
        ("vit.py:folder", "model.size", "B", "Ti"),
        ("glue.py:files", "model.size", "base", "mini"),
        ("summarization.py:files", "model.width", None, 256),
        ("summarization.py:scitldr", "model.width", None, 256),
    ],
)
def test_without_weights_the_model_is_small(name, size, with_weights, from_scratch):
    def field(overrides):
        config = flags.load(f"configs/{name}", overrides)
        for part in size.split("."):
            config = config[part]
        return config

    assert field({"init_from": ""}) == from_scratch
    assert field({"init_from": "weights"}) == with_weights
    given = "L" if size == "model.size" and "vit" in name else "large"
    given = "64" if size == "model.width" else given
    assert str(field({"init_from": "", size: given})) == given


def test_from_scratch_the_learning_rate_fits_too():
    for name in ("vit.py:folder", "glue.py:files", "summarization.py:files"):
        scratch = flags.load(f"configs/{name}", {"init_from": ""}).optimizer
        weights = flags.load(f"configs/{name}", {"init_from": "weights"}).optimizer
        assert scratch.name == "adam"
        assert scratch.lr == 1e-3 != weights.lr
