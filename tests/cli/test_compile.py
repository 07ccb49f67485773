"""Compilation of train steps for devices, at small size on simulated CPU devices."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.programs import run
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.cli import compile as program
from rdrop_jax.cli import program_counts, targets
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


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=pytest.mark.slow) if "wmt14" in spec else spec
        for spec in SMALL
    ],
)
def test_a_step_is_built_from_the_config_alone(spec):
    """Shapes of the batch fit the forward and the loss of every task."""
    config = flags.load(f"configs/{spec}", SMALL[spec])
    resolved = config_lib.resolve(config, 1000.0)
    task, shapes = tasks.abstract(resolved)
    tx = state_lib.make_tx(resolved)
    state = jax.eval_shape(lambda: state_lib.make_state(task, tx, resolved))
    batch = {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}
    _, metrics = jax.eval_shape(state_lib.make_step(task, tx, resolved), state, batch)
    assert {"ce", "kl"} <= set(metrics)


def test_a_preset_that_fine_tunes_has_its_full_size(monkeypatch):
    """`SCRATCH` is for runs without weights. Compiling keeps ``init_from``, unread."""
    seen = []

    def compile_step(config, *_, **options):
        seen.append(config)
        raise InputError("enough")

    monkeypatch.setattr(program, "compile_step", compile_step)
    monkeypatch.setattr(targets, "set_environment", lambda target: None)
    for preset, size in [("vit.py:folder", "B"), ("summarization.py:files", "base")]:
        with pytest.raises(InputError, match="enough"):
            program.main(["--config", f"configs/{preset}", "--target", "gpu:h100"])
        assert seen[-1].model.size == size


TINY = {
    "vit.py": {"model.layers": "1", "model.width": "8", "model.heads": "1"},
    "nmt.py": {"data.vocab_size": "10", "model.encoder_layers": "1", "eval.beam": "2"},
    "lm.py": {"data.vocab_size": "10", "model.layers": "1", "data.block_size": "8"},
}


def abstract_step(spec, step):
    config = flags.load(f"configs/{spec}", TINY[spec])
    mesh = make_mesh(devices=jax.devices()[:1])
    return program.abstract_step(config_lib.resolve(config, 1000.0), mesh, step)


@pytest.mark.parametrize("spec", TINY)
def test_an_evaluation_step_is_built_from_the_config_alone(spec):
    run, params, batch = abstract_step(spec, "eval")
    assert {x.shape[0] for x in batch.values()} == {run_rows(spec)}
    assert "ce" in jax.eval_shape(run, params, batch)


@pytest.mark.parametrize("spec", ["nmt.py", "lm.py"])
def test_decoding_is_built_from_the_config_alone(spec):
    run, params, batch = abstract_step(spec, "decode")
    tokens = getattr(out := jax.eval_shape(run, params, batch), "tokens", out)
    longest = {"nmt.py": 48, "lm.py": 64}[spec]
    assert (tokens.shape[0], tokens.shape[-1]) == (run_rows(spec), longest)


def run_rows(spec):
    return flags.load(f"configs/{spec}", {}).eval.batch_size


def test_decoding_needs_a_task_that_generates_text():
    with pytest.raises(InputError, match=r"--step=decode: expected a task .*got image"):
        abstract_step("vit.py", "decode")


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
    assert 0.5 < found["products"] / found["flops"] < 1  # plus elementwise operations
    assert found["bytes"] > found["temporary"]
    assert found["collectives"]["all-reduce"] >= 1
    assert f"| parameters | {found['parameters']:,} |" in out


def test_quick_is_for_tpus(monkeypatch):
    config = flags.load("configs/lm.py", TINY["lm.py"])
    cpu = targets.parse("cpu:1")
    with pytest.raises(InputError, match=r"--quick: expected a TPU .* got cpu:1"):
        program.compile_step(config, cpu, quick=True)
    given = []
    compile_ = jax.stages.Lowered.compile

    def compile(self, options=None):
        given.append(options)
        return compile_(self, options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    monkeypatch.setattr(targets, "devices", lambda target: jax.devices()[:1])
    for quick in (False, True):
        tpu = targets.parse("tpu:v5e:2x4")
        program.compile_step(config, tpu, "decode", quick=quick)
    assert given == [None, {"exec_time_optimization_effort": -1.0}]


def fit(monkeypatch, spec, needed, *, target="tpu:v5e:2x2", memory=30.0, given=None):
    """Run the search, where ``needed(config)`` is the state and temporary bytes."""

    def compile_step(config, target, step, *, quick):
        assert quick
        state, temporary = needed(config)
        report = program.StepCosts(
            parameters=1,
            state=state,
            temporary=temporary,
            unaliased=0,
            memory=int(memory),
            products=0.0,
            flops=None,
            bytes=0.0,
            recomputed=0,
            collectives={},
            seconds=1.0,
            least_ms=None,
        )
        return None, report

    monkeypatch.setattr(program, "compile_step", compile_step)
    target = targets.parse(target)
    chip = dataclasses.replace(target.chip, memory=memory)
    target = dataclasses.replace(target, chip=chip)
    config = flags.load(spec, given or {})
    change, _, tried = program.fit(config, given or {}, spec, target, quick=True)
    return change, [list(attempt["set"].values()) for attempt in tried]


def test_fit_tries_remat_and_microbatches_until_the_step_fits(monkeypatch, capsys):
    def needed(config):
        return 0, 50 + 50 // config.accum_steps - 30 * config.model.remat

    change, tried = fit(monkeypatch, "configs/vit.py", needed)
    assert change == {"model.remat": "true", "accum_steps": "8"}
    # 2 microbatches of 70 / 2 = 35 bytes cannot fit.
    assert tried == [[], ["true"], ["true", "4"], ["true", "8"]]
    assert "--config.model.remat=true --config.accum_steps=8" in capsys.readouterr().out


def test_fit_shards_a_state_that_does_not_fit(monkeypatch):
    def needed(config):
        return 100 // config.mesh.fsdp, 10 - 5 * config.model.remat

    change, tried = fit(monkeypatch, "configs/vit.py", needed)
    assert change == {"mesh.fsdp": "4", "model.remat": "true"}
    assert tried == [[], ["2"], ["4"], ["4", "true"]]


def test_fit_divides_batches_of_tokens(monkeypatch):
    given = {"accum_steps": "1", "model.remat": "true"}
    spec = "configs/nmt.py:wmt14_en_de"
    change, _ = fit(monkeypatch, spec, lambda c: (0, 100 // c.accum_steps), given=given)
    assert change == {"data.rows_multiple": "4", "accum_steps": "4"}


def test_fit_goes_on_where_a_compiler_runs_out_of_memory(monkeypatch):
    def needed(config):
        if not config.model.remat:
            raise program.OutOfMemory(50, 10, 30.0)
        return 10, 10

    change, tried = fit(monkeypatch, "configs/vit.py", needed)
    assert (change, tried) == ({"model.remat": "true"}, [[], ["true"]])


def test_fit_names_what_does_not_fit(monkeypatch):
    message = r"at most 1.00 GiB per device, got 2.00 GiB with --config.mesh.fsdp=4\."
    with pytest.raises(InputError, match=message):
        fit(monkeypatch, "configs/vit.py", lambda config: (2**31, 0), memory=2**30)


@pytest.mark.parametrize(
    "text",
    [
        "Used 16.5G of 15.75G hbm. Exceeded hbm capacity by 768M",
        "memory required for HLO temporaries (16.5G) exceeds available HBM (15.75G).",
    ],
)
def test_memory_that_a_compiler_asks_for(text):
    assert program_counts.memory_used(f"RESOURCE_EXHAUSTED: {text}") == 16.5 * 2**30
    assert program_counts.memory_used("INTERNAL: no tile sizes") is None


def test_products_are_counted_in_loops_branches_and_shards():
    def run(x):
        def body(y, _):
            branches = (lambda y: y @ x, lambda y: y @ (x @ x))
            return jax.lax.cond(y[0, 0] > 0, *branches, y), None

        local = jax.shard_map(
            lambda y: y @ y.T, mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
        kernel = jnp.ones((3, 3, 1, 5))
        dims = ("NHWC", "HWIO", "NHWC")
        images = jax.lax.conv_general_dilated(
            x.reshape(1, 8, 8, 1), kernel, (1, 1), "SAME", dimension_numbers=dims
        )
        return jax.lax.scan(body, x, None, length=3)[0], local(x), images

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    jaxpr = jax.make_jaxpr(jax.jit(run))(jnp.ones((8, 8))).jaxpr
    wanted = 3 * 2 * 2 * 8**3 + 2 * 2 * 4 * 8 * 4 + 2 * 64 * 9 * 5
    assert program_counts.count_products(jaxpr) == wanted


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


def test_jax_reserves_three_quarters_of_a_gpu():
    found = {name: chip.usable / chip.memory for name, chip in targets.CHIPS.items()}
    assert (found["gpu:h100"], found["tpu:v5e"]) == (0.75, 1.0)


@pytest.mark.parametrize(("name", "count"), [("tpu:v4", 1), ("tpu:v5e", 0)])
def test_both_cores_of_a_chip_are_one_device(name, count, monkeypatch):
    def get_topology_desc(**options):
        assert sum(x == "megacore" for x in options.values()) == count
        return types.SimpleNamespace(devices=["device"])

    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    assert targets.devices(targets.parse(name)) == ["device"]


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


def test_arrays_on_an_explicit_mesh_decide_the_number_of_devices():
    """The losses ask within `on_any_mesh`, without `jax.set_mesh`."""
    found = []

    @meshes.on_any_mesh()
    def loss(x):
        found.append(meshes.device_count())
        return x.sum()

    mesh = Mesh(jax.devices()[:2], ("data",), axis_types=(AxisType.Explicit,))
    jax.jit(loss)(jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, P("data"))))
    assert found == [2]


def test_described_devices_need_not_exist():
    class Described:
        platform, device_kind, num_cores = "tpu", "TPU v5e", 1

    abstract = Mesh(
        np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,)
    ).abstract_mesh
    changed = abstract.update(abstract_device=Described())
    with jax.sharding.use_abstract_mesh(changed):
        assert meshes.platform() == "tpu"
