"""A Trainer subclass and our program take the same steps and reach one score.

The class and the command are those of docs/trainer.md.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from test_integrations import LOSSES, watch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.implementations import BertWordPieceTokenizer  # noqa: E402

from rdrop_jax import rdrop_loss  # noqa: E402
from rdrop_jax.cli.run import open_run  # noqa: E402
from rdrop_jax.data import docstrings  # noqa: E402
from rdrop_jax.export import main as export  # noqa: E402
from rdrop_jax.tasks import classification  # noqa: E402
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


@pytest.fixture(scope="module")
def parts():
    return rows()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parts):
    """A folder with the checkpoint and the tables of all parts."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, [row.text for row in parts["train"]])
    for part, found in parts.items():
        lines = ["text\tlabel", *(f"{row.text}\t{row.subpackage}" for row in found)]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def place(folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RDROP_DATA_DIR", str(folder))


def trainer_of_page(folder, parts, output):
    """Run the page's code up to its training; return the trainer and its data."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
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
    assert code.endswith("trainer.train()\n")
    code = code.removesuffix("trainer.train()\n").replace("runs/trainer", str(output))
    exec(code, names)
    return names["trainer"], data


def arguments(folder, workdir, **options):
    """Return the arguments of the page's command."""
    command = re.search(r"    rdrop-jax train (.*?[^\\])\n\n", PAGE, re.DOTALL)[1]
    command = command.replace("\\\n", " ").replace("CHECKPOINT", str(folder))
    argv = [x.replace("runs/mine", str(workdir)) for x in shlex.split(command)]
    return [*argv, *(f"--config.{name}={x}" for name, x in options.items())]


def last(workdir):
    """Return the last logged means of a training."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [x for x in map(json.loads, lines) if x["kind"] == "train"][-1]


def test_trainer_and_program_reach_one_score(folder, parts, tmp_path):
    trainer, data = trainer_of_page(folder, parts, tmp_path / "trainer")
    trainer.train()
    found = trainer.predict(data["test"])
    old = float(np.mean(found.predictions.argmax(-1) == found.label_ids))
    train(arguments(folder, tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    new = result["test"]["accuracy"]
    print(f"trainer {old:.3f}  program {new:.3f}")
    assert min(old, new) > 0.7
    assert abs(old - new) < 0.05  # two standard errors of 400 rows


def test_without_dropout_both_take_the_same_steps(folder, parts, tmp_path):
    """Schedule, decay, clipping, epsilon and heads: the weights stay the same."""
    trainer, data = trainer_of_page(folder, parts, tmp_path / "trainer")
    off = {"model.dropout": 0.0, "model.attention_dropout": 0.0, "rdrop.alpha": 0}
    run = tmp_path / "run"
    train(arguments(folder, run, total_steps=5, **off))
    batches = open_run(run).task.train_data()
    order = [data["train"][i] for t in range(5) for i in batches.plan(t)[0]]
    trainer.get_train_dataloader = lambda: torch.utils.data.DataLoader(
        order, 32, collate_fn=trainer.data_collator
    )
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    type(trainer).alpha, trainer.args.max_steps = 0.0, 5
    start = {k: x.clone() for k, x in trainer.model.state_dict().items()}
    trainer.train()
    export(["--workdir", str(run), "--output", str(tmp_path / "exported")])
    exported = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "exported"
    )
    ours, theirs = exported.state_dict(), trainer.model.state_dict()
    for name, x in theirs.items():
        step = torch.linalg.norm((x - start[name]).double())
        difference = torch.linalg.norm((ours[name] - x).double())
        assert difference <= 1e-3 * step + 1e-6, name


def test_loss_of_the_page_is_rdrop_loss(folder, parts, tmp_path):
    """On the logits of both passes, with the conversion of alpha in the table."""
    trainer, data = trainer_of_page(folder, parts, tmp_path)
    logits = []
    trainer.model.register_forward_hook(lambda *x: logits.append(x[2].logits))
    batch = trainer.data_collator(data["train"][:32])
    theirs = trainer.compute_loss(trainer.model.train(), batch).item()
    alpha = float(re.search(r"--config.rdrop.alpha=(\S+)", PAGE)[1])
    stacked = torch.stack(logits).detach().numpy()
    options = {"alpha": alpha, "objective_scale": "mean"}
    ours, metrics = rdrop_loss(stacked, batch["labels"].numpy(), **options)
    assert theirs == pytest.approx(float(ours), rel=1e-5)
    assert float(metrics["kl"]) > 0


def test_divergence_falls_when_alpha_rises(folder, tmp_path):
    for alpha in (0.1, 30):
        options = {"rdrop.alpha": alpha, "total_steps": 60, "log.every": 20}
        train(arguments(folder, tmp_path / f"{alpha}", **options))
    low, high = (last(tmp_path / f"{alpha}")["kl"] for alpha in (0.1, 30))
    assert low > high > 0


def test_program_stops_if_dropout_is_off(folder, tmp_path):
    off = {"model.dropout": 0.0, "model.attention_dropout": 0.0}
    with pytest.raises(ValueError, match=r"alpha=3\.2 needs dropout: "):
        train(arguments(folder, tmp_path / "run", **off))


def test_one_and_eight_devices_agree(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES, "program", classification.__name__)
    _, shards = watch("program", monkeypatch)
    options = {"total_steps": 10, "log.every": 10}
    train(arguments(folder, tmp_path / "8", **options))
    one = [sys.executable, "-m", "rdrop_jax.train"]
    subprocess.run([*one, *arguments(folder, tmp_path / "1", **options)], check=True)
    first, second = (last(tmp_path / n) for n in "18")
    for name in ("loss", "kl", "ce"):
        assert first[name] == pytest.approx(second[name], rel=1e-3)
    assert set(shards) == {(1, 8, 1)}
