"""Every translation preset: resolved, shrunk, and built by shape at full size."""

import importlib.util
import re
from pathlib import Path

import jax
import pytest
from helpers import tiny_nmt

from rdrop_jax import tasks
from rdrop_jax.cli.checks import check_values
from rdrop_jax.cli.flags import load, override
from rdrop_jax.config import flatten, resolve
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import SIZES
from rdrop_jax.tasks.seq2seq import prepared_text
from rdrop_jax.tasks.seq2seq import task as seq2seq
from rdrop_jax.tasks.translation import task as translation
from rdrop_jax.tasks.translation import translation_sets
from rdrop_jax.training import state

SPEC = importlib.util.spec_from_file_location("nmt", tiny_nmt.NMT)
CONFIGS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONFIGS)
PAPER = [name for name in CONFIGS.PRESETS if name not in ("demo", "files")]
# Of everything that a shrunk preset keeps, what the model and the data are made of.
SHRUNK = {
    name: value
    for name, value in tiny_nmt.TINY.items()
    if name not in ("rdrop.alpha", "optimizer.schedule")
} | {"accum_steps": "1", "data.moses": "false", "eval.bleu": "13a"}


def test_there_are_all_directions_of_the_paper():
    assert set(PAPER) == {
        "iwslt14_de_en",
        "iwslt14_en_de",
        "iwslt14_es_en",
        "iwslt14_en_es",
        "iwslt17_fr_en",
        "iwslt17_en_fr",
        "iwslt17_zh_en",
        "iwslt17_en_zh",
        "wmt14_en_de",
        "wmt14_en_fr",
    }
    for name in PAPER:
        c = CONFIGS.get_config(name)
        if name.startswith("iwslt14"):
            assert c.data.name in prepared_text.NAMES
            assert {c.data.source, c.data.target} == set(c.data.name.split("_")[1:])
        else:
            assert c.data.name in translation_sets.HUB.values()
            assert {c.data.source, c.data.target} < {*re.split(r"\W", c.data.name)}
            assert not c.data.moses
        assert (c.data.source, c.data.target) == tuple(name.split("_")[1:])
        text = CONFIGS.PRESETS[name].__doc__
        for part in (
            "Paper: ",
            "Never run here",
            f"nmt.py:{name}",
        ):
            assert part in text, name


@pytest.mark.parametrize("name", CONFIGS.PRESETS)
def test_preset_is_built_at_full_size_by_shape(name):
    c = CONFIGS.get_config(name)
    check_values(c)
    if c.data.moses:
        pytest.importorskip("sacremoses", reason="sacremoses is in the extra train")
    translation.check_config(c)
    resolved = resolve(c, 1000.5)
    assert not any(
        isinstance(v, str) and "epoch" in v for v in flatten(resolved).values()
    )
    module = translation.make_model(c, c.data.vocab_size, c.data.vocab_size)
    params = jax.eval_shape(
        lambda key: seq2seq.init_params(module, key), jax.random.key(0)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    if name in PAPER:
        size = SIZES[c.model.name][c.model.size]
        tables = (
            (2 if c.model.share == "decoder" else 1) * c.data.vocab_size * size.width
        )
        layer = 4 * size.width**2 + 2 * size.width * size.mlp_width
        matrices = 6 * layer + 6 * (layer + 4 * size.width**2)
        assert count == pytest.approx(tables + matrices, rel=0.01)
        assert c.rdrop.alpha == 5.0
        assert c.rdrop.label_smoothing == 0.1
        assert c.rdrop.smoothing == "uniform"
    tx = state.make_tx(resolved)
    jax.eval_shape(tx.init, params)


def shrunk(name, folder):
    c = load(tiny_nmt.NMT + f":{name}", {})
    override(c, SHRUNK | {"data.dir": str(folder)})
    return c


def test_shrunk_presets_are_built_from_data(tmp_path):
    tiny_nmt.write(tmp_path)
    for name in CONFIGS.PRESETS:
        c = shrunk(name, tmp_path)
        task = tasks.build(c)
        assert resolve(c, task.train_data().steps_per_epoch).total_steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iwslt14_de_en", "iwslt17_zh_en", "wmt14_en_de"])
def test_a_shrunk_preset_trains(name, tmp_path):
    from rdrop_jax import train

    tiny_nmt.write(tmp_path)
    c = shrunk(name, tmp_path)
    override(c, {"total_steps": "2"})
    assert train.train(c, tmp_path / "run")["test"]["examples"] == 12


def test_an_unknown_preset_names_the_others():
    with pytest.raises(InputError, match="Did you mean iwslt14_de_en"):
        load(f"{Path(tiny_nmt.NMT)}:iwslt14_deen", {})
