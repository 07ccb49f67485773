"""`predict`, `load` and `evaluate` agree about the rows of a split."""

import json
import math

import pytest
from helpers import texts, tiny, tiny_nmt, tiny_sum
from helpers.programs import run as run_program
from helpers.tiny_lm import config_of

from rdrop_jax import train as train_program
from rdrop_jax.data import sources
from rdrop_jax.evaluate import evaluate
from rdrop_jax.predict import load
from rdrop_jax.tasks.image_classification import image_sets
from rdrop_jax.tasks.summarization import scores as summarization
from rdrop_jax.tasks.translation import scores as translation
from rdrop_jax.training import workdir as workdir_lib

SHORT = {"total_steps": 1, "eval__every": 1, "rdrop__alpha": 0}


def answered(workdir, *arguments):
    """Answers of the command line."""
    code, out, err = run_program("predict", "--workdir", workdir, "--json", *arguments)
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def accuracy(answers, labels):
    right = [a["label"] == label for a, label in zip(answers, labels, strict=True)]
    return sum(right) / len(right)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    names = texts.files(folder)
    texts.train(folder / "run", names, **SHORT)
    return folder, folder / "run"


def test_text_classification(classifier):
    folder, workdir = classifier
    rows = [json.loads(x) for x in (folder / "test.jsonl").read_text().splitlines()]
    answers = load(workdir)([(row["text"], row["text_b"]) for row in rows])
    whole = evaluate(workdir, "test", "best")
    assert accuracy(answers, [row["label"] for row in rows]) == pytest.approx(
        whole["accuracy"], abs=1e-4
    )
    assert answered(workdir, "--split", "test") == answers
    assert answered(workdir, "--input", folder / "test.jsonl") == answers


@pytest.mark.slow
def test_image_classification(tmp_path):
    tiny.train(tmp_path / "run", **SHORT)
    data = workdir_lib.read(tmp_path / "run").data
    rows = sources.digits("test", data.split_seed)
    assert len(image_sets.find(data).splits["test"]()) == len(rows)
    answers = load(tmp_path / "run")(list(rows.images))
    whole = evaluate(tmp_path / "run", "test", "best")
    labels = [str(label) for label in rows.labels]
    assert accuracy(answers, labels) == pytest.approx(whole["accuracy"], abs=1e-4)
    found = answered(tmp_path / "run", "--split", "test")
    assert [a["label"] for a in found] == [a["label"] for a in answers]
    for one, other in zip(found, answers, strict=True):  # rounded to six digits
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=2e-6)


@pytest.mark.slow
def test_translation(tmp_path):
    folder = tiny_nmt.write(tmp_path)
    tiny_nmt.train(folder, tmp_path / "run", total_steps=2, eval__every=2)
    rows = [x.split("\t") for x in (folder / "test.tsv").read_text().splitlines()]
    sources, references = zip(*rows, strict=True)
    answers = load(tmp_path / "run")(sources)
    assert answered(tmp_path / "run", "--split", "test") == answers
    assert answered(tmp_path / "run", "--input", folder / "test.tsv") == answers
    whole = evaluate(tmp_path / "run", "test", "best")
    found = translation.scores([a["text"] for a in answers], references)
    assert {name: whole[name] for name in found} == found


@pytest.mark.slow
def test_summarization_in_another_script(tmp_path, monkeypatch):
    words = "десять два люди кошка собака дом дерево красный синий старый"
    monkeypatch.setattr(tiny_sum, "WORDS", words.split())
    folder, workdir = tiny_sum.write(tmp_path), tmp_path / "run"
    tiny_sum.train(folder, workdir, **SHORT, eval__rouge_tokenizer="unicode")
    path = folder / "test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answers = load(workdir)([row["article"] for row in rows])
    # References with parts of the answers, so that no score is 0.
    for row, answer in zip(rows, answers, strict=True):
        row["highlights"] = [answer["text"][3:] or "a", f"{answer['text']} дом. кот"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert answered(workdir, "--split", "test") == answers
    assert answered(workdir, "--input", path) == answers
    whole = evaluate(workdir, "test", "best")
    found = summarization.rouge(
        [a["text"] for a in answers],
        [row["highlights"] for row in rows],
        samples=50,
        tokenizer="unicode",
    )
    assert found["rouge1"] > 0
    assert {name: whole[name] for name in found} == found


@pytest.mark.slow
def test_language_model(tmp_path):
    config = config_of(tmp_path, **SHORT)
    workdir = tmp_path / "run"
    train_program.train(config, workdir)
    whole = evaluate(workdir, "test", "best")
    answers = answered(workdir, "--split", "test", "--mode", "score")
    assert sum(a["tokens"] for a in answers) == whole["examples"]
    total = -sum(a["log_prob"] for a in answers)
    assert total / whole["examples"] == pytest.approx(whole["loss"], abs=1e-4)
    words = sum(len(a["text"].split()) + 1 for a in answers)
    assert math.exp(total / words) == pytest.approx(whole["perplexity"], rel=1e-3)
    lines = [a["text"] for a in answers]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    alone = load(workdir, mode="score")(lines)
    path = tmp_path / "lines.txt"
    assert answered(workdir, "--input", path, "--mode", "score") == alone
    assert alone[0] == answers[0]  # no text before it
