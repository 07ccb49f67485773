"""Vocabularies: exact round trips, the same from the same text, kept with their run."""

import json

import pytest

from rdrop_jax.data import tokenizers
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.translation import cldr

TEXTS = ["rotes herz", "ein haus, ein baum!", "don't (a-b) \u00e4 3.5"] * 3


@pytest.fixture(scope="module")
def vocabulary():
    return tokenizers.train("joint", TEXTS, 100)


def test_text_comes_back(vocabulary):
    for text in [*TEXTS, "baum (haus)", ""]:
        (ids,) = vocabulary.encode([text])
        assert vocabulary.decode(ids) == text
    (ids,) = vocabulary.encode(["  rotes \u2028\t herz \u2581 "])
    assert vocabulary.decode(ids) == "rotes herz"
    assert vocabulary.encode(["a\u0308"]) == vocabulary.encode(["\u00e4"])
    assert 40 < len(vocabulary) <= 100


def test_special_tokens_in_a_text_are_text(vocabulary):
    (ids,) = vocabulary.encode(["</s> <pad>"])
    assert tokenizers.EOS not in ids
    assert tokenizers.PAD not in ids


def test_unknown_characters_are_named(vocabulary):
    assert vocabulary.unknown("haus \u732b \u732b & ein") == "\u732b&"
    assert vocabulary.unknown("<k") == "<k"  # as in <unk>, which is no piece of text
    (ids,) = vocabulary.encode(["haus \u732b"])
    assert tokenizers.UNK in ids
    assert vocabulary.decode(ids) == "haus"


def test_training_is_a_function_of_the_text():
    names = cldr.names("en", "de", 0)["validation"].source
    one, other = (tokenizers.train("joint", names, 300) for _ in range(2))
    assert one.sha256 == other.sha256
    assert len(one) == 300
    rare = tokenizers.train("joint", [chr(0x4E00 + i) for i in range(90)], 40)
    assert len(rare) <= 40


def both(size=50):
    source = tokenizers.train("source", TEXTS, size)
    return tokenizers.Vocabularies(source, tokenizers.train("target", TEXTS, size))


def test_a_run_keeps_its_vocabularies(tmp_path):
    tokenizers.save(both(), tmp_path)
    found = tokenizers.load(tmp_path)
    assert found.provenance() == both().provenance()
    assert set(found.provenance()) == {
        "vocabulary/source.json",
        "vocabulary/target.json",
    }
    assert not found.joint
    assert both(40).provenance() != both().provenance()
    tokenizers.save(both(40), tmp_path)
    assert tokenizers.load(tmp_path).provenance() == both(40).provenance()


def test_joint_is_one(tmp_path, vocabulary):
    tokenizers.save(tokenizers.Vocabularies(vocabulary, vocabulary), tmp_path)
    found = tokenizers.load(tmp_path)
    assert found.joint
    assert found.source is found.target


def test_a_vocabulary_that_is_not_the_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected the vocabulary of a run"):
        tokenizers.load(tmp_path)
    tokenizers.save(both(), tmp_path)
    path = tmp_path / "vocabulary" / "target.json"
    text = path.read_text()
    path.write_text(both(40).target.text)
    with pytest.raises(InputError, match=r"sha256 [0-9a-f]{64}, found another file"):
        tokenizers.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="found no such file"):
        tokenizers.load(tmp_path)
    path.write_text(text)
    tokenizers.load(tmp_path)
    index = tmp_path / "vocabulary" / "index.json"
    index.write_text(json.dumps({"format": 1, "files": ["joint.json"]}))
    with pytest.raises(InputError, match="corrupt index"):
        tokenizers.load(tmp_path)
    index.write_text(json.dumps({"format": 2}))
    with pytest.raises(InputError, match="expected format 1"):
        tokenizers.load(tmp_path)


def test_files_of_others_are_refused():
    with pytest.raises(InputError, match="source: not a tokenizer file"):
        tokenizers.Vocabulary("source", "{}")
    text = tokenizers.train("source", TEXTS, 50).text.replace("<pad>", "[PAD]")
    with pytest.raises(InputError, match="expected ids 0, 1 and 2 for <pad>"):
        tokenizers.Vocabulary("source", text)
