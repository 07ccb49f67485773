"""A Trainer subclass and our program reach one score from one checkpoint.

The class and the command are those of docs/trainer.md.
"""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers.implementations import BertWordPieceTokenizer  # noqa: E402

from rdrop_jax.data import docstrings  # noqa: E402
from rdrop_jax.train import main as train  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "trainer.md").read_text()
CLASSES = ["optimize", "signal", "sparse", "stats"]


def rows():
    """Summaries of scipy's docstrings and their subpackages, in three parts."""
    found = docstrings.summaries("scipy", shortest=20, rarest=50)
    kept = [row for row in found if row.subpackage in CLASSES]
    return docstrings.split(kept, {"train": 0.7, "validation": 0.1, "test": 0.2}, 0)


def write_checkpoint(folder, texts):
    """A small BERT with random weights, and a tokenizer."""
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=2000, show_progress=False)
    tokenizer.enable_truncation(48)
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=48,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: i for i, name in enumerate(CLASSES)},
    )
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def score_of_trainer(folder, tokenizer, parts):
    """Test accuracy after the page's training."""
    model = transformers.BertForSequenceClassification.from_pretrained(folder)

    def encoded(rows):
        for text, name in ((row.text, row.subpackage) for row in rows):
            tokens = tokenizer.encode(text).ids
            yield {"input_ids": tokens, "labels": CLASSES.index(name)}

    def collated(rows):
        tokens = [torch.tensor(row["input_ids"]) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        labels = torch.tensor([row["labels"] for row in rows])
        mask = torch.arange(ids.shape[1]) < torch.tensor([[len(t)] for t in tokens])
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}

    data = {part: [*encoded(found)] for part, found in parts.items()}
    names = {"model": model, "data": data, "collate": collated}
    code = re.search(r"<!-- torch -->\n```python\n(.*?)```", PAGE, re.DOTALL)[1]
    exec(code, names)
    found = names["trainer"].predict(data["test"])
    return float(np.mean(found.predictions.argmax(-1) == found.label_ids))


def score_of_program(folder, workdir):
    command = re.search(r"    rdrop-jax train (.*?[^\\])\n\n", PAGE, re.DOTALL)[1]
    command = command.replace("\\\n", " ").replace("CHECKPOINT", str(folder))
    argv = [x.replace("runs/mine", str(workdir)) for x in shlex.split(command)]
    train(argv)
    return json.loads((workdir / "result.json").read_text())["test"]["accuracy"]


def test_trainer_and_program_reach_one_score(tmp_path, monkeypatch):
    parts = rows()
    tokenizer = write_checkpoint(tmp_path, [row.text for row in parts["train"]])
    for part, found in parts.items():
        lines = ["text\tlabel", *(f"{row.text}\t{row.subpackage}" for row in found)]
        (tmp_path / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RDROP_DATA_DIR", str(tmp_path))
    old = score_of_trainer(tmp_path, tokenizer, parts)
    new = score_of_program(tmp_path, tmp_path / "run")
    print(f"trainer {old:.3f}  program {new:.3f}")
    assert min(old, new) > 0.7
    assert abs(old - new) < 0.05  # two standard errors of 400 rows
