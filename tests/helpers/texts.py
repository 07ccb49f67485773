"""Small files of labelled texts, and a tiny encoder trained on them."""

import json
from pathlib import Path

import numpy as np

from rdrop_jax import flags
from rdrop_jax import train as train_program

GLUE = str(Path(__file__).parents[2] / "configs" / "glue.py")
WORDS = {"good": ["fine", "great", "lovely"], "bad": ["poor", "awful", "dull"]}
TINY = {
    "total_steps": "4",
    "batch_size": "8",
    "eval.every": "2",
    "checkpoint.every": "2",
    "log.every": "20",
    "log.trackers": "()",
    "eval.batch_size": "16",
    "model.size": "mini",
    "model.layers": "1",
    "model.width": "32",
    "model.heads": "2",
    "model.mlp_width": "32",
    "model.vocab_size": "100",
    "model.max_positions": "32",
    "data.max_length": "32",
    "data.buckets": "1",
    "optimizer.lr": "0.01",
    "optimizer.warmup": "0",
}


def rows(count, seed=0):
    """Pairs whose label says whether a good word stands in the first."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = str(rng.choice(list(WORDS)))
        word = str(rng.choice(WORDS[label]))
        found.append(
            {
                "text": f"The film was {word}, they say.",
                "text_b": " ".join(["It was"] + ["very"] * int(rng.integers(1, 15))),
                "label": label,
            }
        )
    return found


def write(path, found):
    """A .jsonl, or a .tsv with the columns of the first row."""
    if path.suffix == ".tsv":
        lines = ["\t".join(found[0])]
        lines += ["\t".join(map(str, row.values())) for row in found]
    else:
        lines = [json.dumps(row) for row in found]
    path.write_text("\n".join(lines) + "\n")


def files(folder, suffix=".jsonl", change=lambda row: row):
    """Train, validation and test files; overrides that name them."""
    names = {}
    for seed, (split, count) in enumerate(
        {"train": 64, "validation": 24, "test": 24}.items()
    ):
        path = folder / f"{split}{suffix}"
        write(path, [change(row) for row in rows(count, seed)])
        names[f"data.files.{split}"] = path.name
    return names | {"data.dir": str(folder), "data.columns.text_b": "text_b"}


def load(overrides, **more):
    changed = {k.replace("__", "."): str(v) for k, v in more.items()}
    return flags.load(GLUE + ":files", TINY | overrides | changed)


def train(workdir, overrides, **more):
    return train_program.train(load(overrides, **more), workdir)
