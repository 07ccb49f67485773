"""Benchmarks run, in small; PyTorch, which the tests do not install, is left out."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = {
    "loss": ["--positions=64", "--classes=50", "--rounds=1"],
    "step": ["--layers=1", "--width=64", "--batch=4", "--rounds=1"],
    "large_vocab": ["--positions=64", "--vocab=50", "--width=8", "--rounds=1"],
    "dropout": ["--rounds=1"],
    "finetune": ["--size=mini", "--batch=4", "--length=16", "--rounds=1"],
}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| arm | ms, least | times ours, median (range) |" in done.stdout
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch is not installed" in done.stdout


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
