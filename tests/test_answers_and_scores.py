"""Scores of the answers of `load` and `predict` are those of `evaluate`."""

import json

import pytest
import tiny_nmt
from programs import run as run_program

from rdrop_jax.evaluate import evaluate
from rdrop_jax.predict import load
from rdrop_jax.scoring import translation


def answered(workdir):
    code, out, err = run_program(
        "predict", "--workdir", workdir, "--split", "test", "--json"
    )
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.slow
def test_translation(tmp_path):
    folder = tiny_nmt.write(tmp_path)
    tiny_nmt.train(folder, tmp_path / "run", total_steps=2, eval__every=2)
    rows = [x.split("\t") for x in (folder / "test.tsv").read_text().splitlines()]
    sources, references = zip(*rows, strict=True)
    answers = load(tmp_path / "run")(sources)
    assert answered(tmp_path / "run") == answers
    whole = evaluate(tmp_path / "run", "test", "best")
    found = translation.scores([a["text"] for a in answers], references)
    assert {name: whole[name] for name in found} == found
