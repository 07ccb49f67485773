"""Tiny language models and their texts."""

from pathlib import Path

import numpy as np

from rdrop_jax import flags

LM = str(Path(__file__).parents[2] / "configs" / "lm.py")


TINY = {
    "total_steps": "6",
    "batch_size": "8",
    "eval.every": "3",
    "checkpoint.every": "3",
    "log.trackers": "()",
    "model.layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "model.mlp_width": "16",
    "data.tokens": "words",
    "data.block_size": "12",
    "eval.block_size": "12",
    "eval.context": "5",
    "eval.batch_size": "8",
    "eval.new_tokens": "4",
    "optimizer.warmup": "0",
}


ADAPTIVE = {
    "model.name": "adaptive_transformer",
    "model.size": "mini",
    "model.cutoffs": "(6, 12)",
    "model.factor": "2",
    "model.softmax_dropout": "0.1",
}


def text(lines, seed=0):
    rng = np.random.default_rng(seed)
    nouns, verbs = ["cat", "dog", "bird", "fish"], ["sees", "bites", "likes"]

    def pick(words):
        return str(rng.choice(words))

    return [
        f"{pick(['the', 'a'])} {pick(nouns)} {pick(verbs)} the {pick(nouns)} {i % 7}"
        for i in range(lines)
    ]


def config_of(tmp_path, preset="files", **overrides):
    path = tmp_path / "text.txt"
    if not path.exists():
        path.write_text("\n".join(text(300)) + "\n")
    given = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    files = {"data.files.train": str(path)}
    return flags.load(f"{LM}:{preset}", TINY | files | given)
