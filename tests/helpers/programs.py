"""Starts the programs as a user does."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = [
    "--config.total_steps=60",
    "--config.eval.every=20",
    "--config.checkpoint.every=10",
    "--config.log.every=5",
    "--config.model.layers=1",
    "--config.model.width=32",
    "--config.model.mlp_width=32",
]


def start(name, *argv, **options):
    return subprocess.Popen(
        [sys.executable, "-u", "-m", f"rdrop_jax.{name}", *map(str, argv)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def run(name, *argv, text=None):
    process = start(name, *argv, stdin=subprocess.PIPE)
    out, err = process.communicate(text)
    return process.returncode, out, err


def train_argv(workdir, *more):
    return ["--config", "configs/vit.py", "--workdir", workdir, *TINY, *more]
