"""Lines of a split that a language model scores add up to what `evaluate` reports."""

import math

import jax
import pytest
from helpers.tiny_lm import config_of

from rdrop_jax import tasks
from rdrop_jax.tasks.language_modeling import generation, token_files, vocabularies
from rdrop_jax.tasks.language_modeling import task as language_model
from rdrop_jax.training.mesh import make_mesh

TEST = [
    "the cat sees the zzzunknown 3",
    "",
    "the <unk> bites  the fish 1 and the bird and the dog and the cat \u2028 x",
    "a bird",
]


def scored(folder, kind, lines, context=5):
    (folder / "test.txt").write_text("".join(f"{x}\n" for x in lines), "utf-8")
    config = config_of(
        folder,
        data__files__test=folder / "test.txt",
        data__tokens=kind,
        data__vocab_size=40 if kind == "bpe" else 0,
        eval__predict="score",
        eval__context=context,
    )
    workdir = folder / kind
    task, mesh = tasks.build(config, workdir, resuming=False), make_mesh()
    params = task.init(jax.random.key(0))
    predictor = task.predictor(mesh)
    answers = list(predictor.run(params, predictor.rows("test")))
    return answers, task.evaluators["test"](mesh)(params)


@pytest.mark.parametrize("kind", ["words", "characters", "bpe"])
@pytest.mark.parametrize("lines", [TEST, TEST[:1]])
def test_lines_add_up_to_the_evaluation(tmp_path, kind, lines):
    answers, whole = scored(tmp_path, kind, lines)
    assert [a["text"] for a in answers] == lines
    assert sum(a["tokens"] for a in answers) == whole["examples"]
    total = -sum(a["log_prob"] for a in answers)
    assert total == pytest.approx(whole["loss"] * whole["examples"], abs=1e-3)
    texts = [a["text"] for a in answers]
    if kind != "characters":  # other tokens encode single spaces alone
        texts = [" ".join(text.split()) for text in texts]
    characters = [len(text) + 1 for text in texts]
    bits = sum(
        a["bits_per_character"] * n for a, n in zip(answers, characters, strict=True)
    ) / sum(characters)
    assert bits == pytest.approx(whole["bits_per_character"], abs=1e-3)
    words = sum(len(a["text"].split()) + 1 for a in answers)
    assert math.exp(total / words) == pytest.approx(whole["perplexity"], rel=1e-4)


def test_notes_tell_unknown_words_from_written_ones(tmp_path):
    answers, _ = scored(tmp_path, "words", TEST)
    assert answers[0]["notes"] == ["1 tokens are not in the vocabulary"]
    assert "1 tokens are <unk> in the text" in answers[2]["notes"]
    assert "notes" not in answers[3]


def test_texts_of_earlier_runs_come_from_their_ids(tmp_path):
    words = vocabularies.learn("words", ["a b", "<unk> b"], 0, 1)
    made = token_files.make(words, {"test": ["a zzz", "", "b"]})
    folder = token_files.save(made, tmp_path / "text")
    found = token_files.load(folder).splits["test"]
    assert generation.split_lines(found, words) == ["a zzz", "", "b"]
    (folder / "test.txt").unlink()
    found = token_files.load(folder).splits["test"]
    assert generation.split_lines(found, words) == ["a <unk>", "", "b"]
    (folder / "test.txt").write_text("another\n")
    with pytest.raises(language_model.InputError, match=r"expected 9 characters"):
        token_files.load(folder)
