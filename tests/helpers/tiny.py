"""Trains a tiny ViT on real digits, in this process, in a second or two."""

from pathlib import Path

from rdrop_jax import flags
from rdrop_jax import train as train_program

VIT = str(Path(__file__).parents[2] / "configs" / "vit.py")
TINY = {
    "total_steps": "6",
    "eval.every": "3",
    "checkpoint.every": "2",
    "log.every": "2",
    "log.trackers": "()",
    "eval.batch_size": "128",
    "model.layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "model.mlp_width": "16",
    "model.patch_size": "4",
    "optimizer.warmup": "0",
}


def config(**overrides):
    changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return flags.load(VIT, TINY | changed)


def train(workdir, **overrides):
    return train_program.train(config(**overrides), workdir)
