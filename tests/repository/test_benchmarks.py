"""Benchmarks run, in small, without PyTorch and CTranslate2 unless installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerators
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
SLOW = dict.fromkeys(("dropout", "step", "translation", "finetune"), pytest.mark.slow)
PACKAGES = {"decode": ("ctranslate2", "CTranslate2")}  # most others: PyTorch
ALONE = ("adaptive",)  # compared with no other package


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW.get(n, ())) for n in SMALL]
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
