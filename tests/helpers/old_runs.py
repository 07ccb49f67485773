"""Trains a tiny run of each task with version 0.1, from the folder of its source.

    python old_runs.py SOURCE OUTPUT

The test modules of that version bring the data and the settings.
"""

import json
import sys
from pathlib import Path

SETTINGS = {
    "total_steps": "8",
    "checkpoint.every": "2",
    "eval.every": "2",
    "checkpoint.keep": "10",
}


def train(workdir, spec, overrides):
    from rdrop_jax import flags
    from rdrop_jax.train import train

    overrides = overrides | SETTINGS
    train(flags.load(spec, overrides), workdir)
    stored = {"spec": Path(spec).name, "overrides": overrides}
    workdir.with_suffix(".json").write_text(json.dumps(stored))


def main(source, output):
    sys.path[:0] = [source, f"{source}/tests"]
    import test_language_model as lm
    import texts
    import tiny
    import tiny_nmt
    import tiny_sum

    def folder(name):
        path = output / "data" / name
        path.mkdir(parents=True)
        return path

    train(output / "image_classification", tiny.VIT, tiny.TINY)
    pairs = {"data.dir": str(tiny_nmt.write(folder("translation")))}
    train(output / "translation", tiny_nmt.NMT, tiny_nmt.TINY | pairs)
    documents = {"data.dir": str(tiny_sum.write(folder("summarization")))}
    spec = tiny_sum.SUMMARIZATION + ":files"
    train(output / "summarization", spec, tiny_sum.TINY | documents)
    files = texts.files(folder("text_classification"))
    train(output / "text_classification", texts.GLUE + ":files", texts.TINY | files)
    text = folder("language_model")
    lines = {"train": (60, 0), "validation": (12, 1), "test": (12, 2)}
    for split, (count, seed) in lines.items():
        (text / f"{split}.txt").write_text("\n".join(lm.text(count, seed)))
    files = {f"data.files.{split}": f"{split}.txt" for split in lines}
    files |= {"data.name": "files", "data.dir": str(text)}
    train(output / "language_model", lm.LM, lm.TINY | files)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
