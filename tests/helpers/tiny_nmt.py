"""Trains a tiny translator on made-up pairs, in this process, in seconds."""

from pathlib import Path

from rdrop_jax import flags
from rdrop_jax import train as train_program

NMT = str(Path(__file__).parents[2] / "configs" / "nmt.py")
WORDS = ["eins", "zwei", "drei", "vier", "haus", "baum", "rot", "blau"]
TINY = {
    "total_steps": "6",
    "batch_tokens": "256",
    "rdrop.alpha": "1",
    "optimizer.schedule": "constant",
    "optimizer.warmup": "0",
    "eval.every": "3",
    "eval.batch_size": "8",
    "eval.beam": "2",
    "eval.max_length_b": "3",
    "checkpoint.every": "2",
    "log.every": "2",
    "log.trackers": "()",
    "model.encoder_layers": "1",
    "model.decoder_layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "model.mlp_width": "16",
    "data.name": "files",
    "data.files.train": "train.tsv",
    "data.files.validation": "validation.tsv",
    "data.files.test": "test.tsv",
    "data.columns.source": "0",
    "data.columns.target": "1",
    "data.vocab_size": "100",
    "data.max_length": "16",
    "data.buckets": "1",
}


def write(folder, train=60, held_out=12):
    """Sentences of one to five words, and the same in capitals."""
    for split, count in (
        ("train", train),
        ("validation", held_out),
        ("test", held_out),
    ):
        rows = []
        for i in range(count):
            words = [WORDS[(i * 7 + j * j) % 8] for j in range(1 + i % 5)]
            rows.append(f"{' '.join(words)}\t{' '.join(words).upper()}\n")
        (folder / f"{split}.tsv").write_text("".join(rows))
    return folder


def config(folder, **overrides):
    changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return flags.load(NMT, TINY | {"data.dir": str(folder)} | changed)


def train(folder, workdir, **overrides):
    return train_program.train(config(folder, **overrides), workdir)
