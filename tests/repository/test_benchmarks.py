"""Benchmarks run, in small, without PyTorch and CTranslate2 unless installed."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import accelerators, gpu, gpu_parts
from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import targets
from rdrop_jax.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = {
    "loss": ["--positions=64", "--classes=50", "--rounds=1"],
    "step": ["--layers=1", "--width=64", "--batch=4", "--rounds=1"],
    "large_vocab": ["--positions=64", "--vocab=50", "--width=8", "--rounds=1"],
    "dropout": ["--rounds=1"],
    "adaptive": ["--positions=16", "--words=8,8,8", "--width=16", "--rounds=1"],
    "decode": [
        *("--layers=1", "--width=32", "--mlp_width=32", "--vocab=200", "--length=2"),
        *("--sources=8", "--batch=4", "--uncached=4", "--rounds=1"),
    ],
    "translation": [
        *("--layers=1", "--width=32", "--vocab=100", "--rows=4", "--length=8"),
        "--rounds=1",
    ],
    "finetune": ["--size=mini", "--batch=4", "--length=16", "--rounds=1"],
}
PACKAGES = {"decode": ("ctranslate2", "CTranslate2")}  # most others: PyTorch
ALONE = ("adaptive",)  # compared with no other package


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n == "loss" else pytest.mark.slow) for n in SMALL],
)
def test_benchmark(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| arm | ms, minimum | times ours, median (range) |" in done.stdout
    package, label = PACKAGES.get(name, ("torch", "PyTorch"))
    if name not in ALONE and importlib.util.find_spec(package) is None:
        assert f"{label} is not installed" in done.stdout
    if name == "decode":
        assert "uncached: 100.0% equal" in done.stdout


@pytest.mark.slow
def test_loader():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--images=32", "--workers=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| Pillow, decoding alone |" in done.stdout
    assert "| array_record to batch: random crop |" in done.stdout


def test_accelerators_resumes_and_skips(tmp_path, monkeypatch, capsys):
    out = tmp_path / "costs.jsonl"
    out.write_text('["tpu:v5e:2x4", 2, "ours", 17.0, 5, 2.0]\n')
    argv = ["accelerators", "--target=tpu:v5e:2x4", "--layers=2", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", [*argv, "--cases=ours"])
    monkeypatch.setattr(targets, "set_environment", lambda target: None)
    accelerators.main()
    assert "tpu:v5e:2x4, 2, ours, 17.0, 5, 2.0" in capsys.readouterr().out

    def missing(target):
        raise InputError("not installed")

    monkeypatch.setattr(targets, "set_environment", missing)
    accelerators.main()
    assert capsys.readouterr().out == "skipped: not installed\n"


QUICK_PARTS = ("device", "torch_cifar100")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_PARTS else pytest.mark.slow)
        for name in gpu_parts.PARTS
    ],
)
def test_parts_for_a_gpu(name, monkeypatch):
    monkeypatch.setattr(targets, "set_environment", lambda target: None)
    found = json.loads(json.dumps(gpu_parts.PARTS[name]("small", "cpu:1")))
    kind, _, rest = name.partition("_")
    if kind == "device":
        assert (found["device"], found["target"]) == ("cpu", "cpu:1")
    elif kind == "resume":
        assert found["arrays"] > 10
        assert found["different"] == []
    elif kind == "promise":
        assert found["needed"] > found["state"] > 0
    elif kind == "torch" and importlib.util.find_spec("torch") is None:
        assert found == {"skipped": "PyTorch is not installed"}
    else:
        names = {"step": ["R-Drop", "plain"], "torch": ["eager", "torch"]}
        names["fused"] = ["default", "fused"]
        assert list(found)[:2] == names.get(kind, ["ours", "cross entropy"]), rest
        assert found[next(iter(found))]["ms"] > 0
        assert all(0 < x < 0.1 for x in found.get("differences", {}).values())


def test_arms_for_a_gpu_are_compiled_and_timed():
    program, found = gpu_parts.compiled_for(jax.jit(lambda x: 2 * x), np.ones(3))
    assert program(np.ones(3)).tolist() == [2, 2, 2]
    assert found.keys() == {"trace_seconds", "compile_seconds", "temporary"}
    arms = {"slow": lambda: time.sleep(0.004), "quick": lambda: None}
    times = gpu_parts.add_times({"slow": found, "quick": {}}, arms, 3)
    assert times["slow"]["ms"] >= 4 > times["quick"]["ms"]
    assert times["slow"]["first_over_this"] == "1.00 (1.00 to 1.00)"
    assert float(times["quick"]["first_over_this"].split()[0]) > 1


@pytest.mark.parametrize("preset", gpu_parts.SMALL)
def test_batches_for_a_gpu_fit_the_model(preset):
    config = config_lib.resolve(gpu_parts.load(preset, "small", {}), 1000.0)
    assert config.model.dtype == "bfloat16"
    _, shapes = tasks.abstract(config)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = {k: jax.ShapeDtypeStruct(*v, sharding=place) for k, v in shapes.items()}
    batch = gpu_parts.random_batch(config, placed)
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (shape, np.dtype(dtype)) for k, (shape, dtype) in shapes.items()
    }
    for name in ("where", "src_where", "labelled"):
        assert np.all(batch.get(name, 1))
    ids = [batch[k] for k in ("tokens", "src", "inputs", "labels") if k in batch]
    assert all(0 <= x.min() < x.max() < 50 for x in ids)


@pytest.fixture
def gpu_run(tmp_path, monkeypatch):
    """Runs `benchmarks.gpu` with results instead of measurements."""
    out, started = tmp_path / "gpu.json", []
    device = {"device": "H100", "target": "gpu:h100"}

    def measure(name, size, target, seconds):
        if name == "device":
            return dict(device)
        started.append(name)
        results = {"step": {"R-Drop": {"peak": 90}}, "promise": {"needed": 100}}
        return results.get(name.partition("_")[0], {"error": "not finished in 480 s"})

    def run(*argv):
        started.clear()
        gpu.main([f"--out={out}", *argv])
        return list(started), json.loads(out.read_text())

    monkeypatch.setattr(gpu, "measure", measure)
    return run, device


def test_a_benchmark_for_a_gpu_resumes(gpu_run, capsys):
    run, device = gpu_run
    measured = [name for name in gpu_parts.PARTS if name != "device"]
    first, found = run("--part", "step_cifar100", "torch_cifar100")
    assert (first, list(found["parts"])) == ([*measured[:1], "torch_cifar100"], first)
    assert found["peak_over_promise"] == {}
    rest, found = run()
    assert rest == [name for name in measured if name not in first]
    assert found["peak_over_promise"] == dict.fromkeys(gpu_parts.SMALL, 0.9)
    assert run()[0] == []
    again, found = run("--part", "torch_cifar100")
    assert again == ["torch_cifar100"]
    assert "limit" not in capsys.readouterr().out
    assert run("--part", "large_vocab", "--limit=0")[0] == []
    assert "run the same command again" in capsys.readouterr().out
    device["device"] = "A100"
    with pytest.raises(InputError, match=r"--out: .*got those of .*H100"):
        run()


def test_a_part_for_a_gpu_is_stopped_at_its_limit(monkeypatch):
    assert gpu.measure("device", "small", "", 0.01) is None
    monkeypatch.setattr(gpu, "PART_SECONDS", 0.01)
    found = gpu.measure("device", "small", "", 9.0)
    assert found["error"].startswith("not finished in")


@pytest.mark.slow
def test_a_benchmark_for_a_gpu_in_processes(tmp_path):
    out = tmp_path / "gpu.json"
    argv = [f"--out={out}", "--size=small", "--part", "large_vocab", "step_cifar100"]
    gpu.main(argv)
    found = json.loads(out.read_text())
    assert found["device"]["device"] == "cpu"
    assert {"R-Drop", "plain"} == set(found["parts"]["step_cifar100"])
    with pytest.raises(InputError, match="expected a GPU, got cpu"):
        gpu.main([f"--out={out}"])
