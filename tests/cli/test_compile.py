"""Compilation of train steps for devices, at small size on simulated CPU devices."""

import json

import jax
import numpy as np
import pytest
from helpers.programs import run
from jax.sharding import AxisType, Mesh

from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.cli import compile as program
from rdrop_jax.cli import targets
from rdrop_jax.core import meshes
from rdrop_jax.errors import InputError
from rdrop_jax.training import state as state_lib
from rdrop_jax.training.mesh import make_mesh

SMALL = {
    "vit.py": {"model.layers": "1", "model.width": "16", "model.mlp_width": "16"},
    "glue.py:rte_bert_base": {"model.layers": "1", "batch_size": "8"},
    "nmt.py:wmt14_en_de": {
        "data.vocab_size": "100",
        "accum_steps": "1",
        "model.encoder_layers": "1",
        "model.decoder_layers": "1",
    },
    "summarization.py": {"data.vocab_size": "100"},
    "lm.py:wikitext103": {
        "data.vocab_size": "100",
        "accum_steps": "1",
        "model.layers": "1",
    },
}


@pytest.mark.parametrize("spec", SMALL)
def test_a_step_is_built_from_the_config_alone(spec):
    """Shapes of the batch fit the forward and the loss of every task."""
    config = flags.load(f"configs/{spec}", {"init_from": ""} | SMALL[spec])
    resolved = config_lib.resolve(config, 1000.0)
    task, shapes = tasks.abstract(resolved)
    tx = state_lib.make_tx(resolved)
    state = jax.eval_shape(lambda: state_lib.make_state(task, tx, resolved))
    batch = {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}
    _, metrics = jax.eval_shape(state_lib.make_step(task, tx, resolved), state, batch)
    assert {"ce", "kl"} <= set(metrics)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.json"
    small = [f"--config.{k}={v}" for k, v in SMALL["vit.py"].items()]
    argv = ("--config", "configs/vit.py", "--target", "cpu:2", "--json", file, *small)
    code, out, err = run("compile", *argv)
    assert code == 0, err
    return out, json.loads(file.read_text())


def test_the_report_counts_memory_and_collectives(report):
    out, found = report
    assert found["target"] == "cpu:2"
    assert found["state"] > 4 * 3 * found["parameters"]  # parameters and two moments
    assert found["temporary"] > 0
    assert found["flops"] > 0
    assert found["collectives"]["all-reduce"] >= 1
    assert f"| parameters | {found['parameters']:,} |" in out


def test_fit_tries_remat_and_microbatches_until_the_step_fits(monkeypatch, capsys):
    def compile_step(config, target):
        tried.append((config.model.remat, config.accum_steps))
        needed = 100 // config.accum_steps - 10 * config.model.remat
        return None, program.StepCosts(1, needed, 0, 0, 30, None, None, {}, 1.0, None)

    tried = []
    monkeypatch.setattr(program, "compile_step", compile_step)
    config = flags.load("configs/vit.py", {})
    change, _ = program.fit(config, {}, "configs/vit.py", targets.parse("cpu"))
    assert change == {"model.remat": "true", "accum_steps": "4"}
    assert tried == [(False, 1), (True, 1), (True, 2), (True, 4)]
    assert "--config.model.remat=true --config.accum_steps=4" in capsys.readouterr().out


def test_fit_divides_batches_of_tokens(monkeypatch):
    def compile_step(config, target):
        needed = 100 // config.accum_steps
        return None, program.StepCosts(1, needed, 0, 0, 30, None, None, {}, 1.0, None)

    monkeypatch.setattr(program, "compile_step", compile_step)
    given = {"accum_steps": "1", "model.remat": "true"}
    config = flags.load("configs/nmt.py:wmt14_en_de", given)
    target = targets.parse("cpu")
    change, _ = program.fit(config, given, "configs/nmt.py:wmt14_en_de", target)
    assert change == {"accum_steps": "4"}


def test_fit_names_what_does_not_fit(monkeypatch):
    report = program.StepCosts(1, 2**31, 0, 0, 2**30, None, None, {}, 1.0, None)
    monkeypatch.setattr(program, "compile_step", lambda config, target: (None, report))
    config = flags.load("configs/vit.py", {})
    with pytest.raises(InputError, match=r"at most 1.00 GiB per device, got 2.00 GiB"):
        program.fit(config, {}, "configs/vit.py", targets.parse("cpu"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpu:h100", ("gpu:h100:1", "1x1x1", 1)),
        ("gpu:24g:8", ("gpu:24g:8", "1x1x8", 8)),
        ("tpu:v5e", ("tpu:v5e:2x4", "2x4", 8)),
        ("tpu:v4:2x2x2", ("tpu:v4:2x2x2", "2x2x2", 8)),
        ("cpu:4", ("cpu:4", "1x1x4", 4)),
    ],
)
def test_targets(name, found):
    target = targets.parse(name)
    assert (target.name, target.topology, target.count) == found


@pytest.mark.parametrize(
    "name", ["h100", "gpu:h100:0", "tpu:v5e:8", "gpu:h100:2x2", ""]
)
def test_unknown_targets(name):
    with pytest.raises(InputError, match=r"--target: expected .*got"):
        targets.parse(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    with pytest.raises(InputError, match=r"pip install \"jax\[tpu\]\""):
        targets.set_environment(targets.parse("tpu:v5e"))


def test_a_text_must_give_its_number_of_tokens():
    config = config_lib.resolve(flags.load("configs/lm.py:wikitext103", {}), 10.0)
    with pytest.raises(InputError, match=r"data\.vocab_size: expected the number"):
        tasks.abstract(config)


def test_the_mesh_decides_the_platform_and_the_number_of_devices():
    assert (meshes.platform(), meshes.device_count()) == ("cpu", 8)
    mesh = make_mesh(devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        assert (meshes.platform(), meshes.device_count()) == ("cpu", 2)


def test_described_devices_need_not_exist():
    class Described:
        platform, device_kind, num_cores = "tpu", "TPU v5e", 1

    abstract = Mesh(
        np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,)
    ).abstract_mesh
    changed = abstract.update(abstract_device=Described())
    with jax.sharding.use_abstract_mesh(changed):
        assert meshes.platform() == "tpu"
