"""Trains a tiny summarizer on made-up documents, in this process, in seconds."""

import json
from pathlib import Path

from rdrop_jax import flags
from rdrop_jax import train as train_program

SUMMARIZATION = str(Path(__file__).parents[2] / "configs" / "summarization.py")
WORDS = ["ten", "two", "men", "cat", "dog", "house", "tree", "red", "blue", "old"]
TINY = {
    "total_steps": "4",
    "batch_tokens": "512",
    "accum_steps": "1",
    "init_from": "",
    "optimizer.lr": "1e-3",
    "optimizer.schedule": "constant",
    "optimizer.warmup": "0",
    "eval.every": "2",
    "eval.batch_size": "8",
    "eval.beam": "2",
    "eval.min_length": "3",
    "eval.max_length": "10",
    "eval.bootstrap": "50",
    "checkpoint.every": "2",
    "log.every": "2",
    "log.trackers": "()",
    "model.encoder_layers": "1",
    "model.decoder_layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "model.mlp_width": "16",
    "model.max_positions": "32",
    "model.dtype": "float32",
    "model.remat": "false",
    "data.name": "files",
    "data.files.train": "train.jsonl",
    "data.files.validation": "validation.jsonl",
    "data.files.test": "test.jsonl",
    "data.columns.source": "article",
    "data.columns.target": "highlights",
    "data.vocab_size": "320",
    "data.max_length": "32",
    "data.max_target_length": "16",
    "data.buckets": "1",
    "data.rows_multiple": "8",
}


def write(folder, train=40, held_out=9):
    """Documents of three to eight words, and their first ones; two ways for tests."""
    for split, count in (
        ("train", train),
        ("validation", held_out),
        ("test", held_out),
    ):
        rows = []
        for i in range(count):
            words = [WORDS[(i * 7 + j * j) % 10] for j in range(3 + i % 6)]
            short = " ".join(words[:2])
            targets = short if split == "train" else [short, words[0]]
            rows.append({"article": " ".join(words), "highlights": targets})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def config(folder, preset="files", **overrides):
    changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    changed = TINY | {"data.dir": str(folder)} | changed
    return flags.load(f"{SUMMARIZATION}:{preset}", changed)


def train(folder, workdir, **overrides):
    return train_program.train(config(folder, **overrides), workdir)
