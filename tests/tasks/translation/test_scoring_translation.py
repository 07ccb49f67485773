"""BLEU, chrF and exact match against values worked out by hand."""

import math

import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.translation import scores


def test_bleu_by_hand():
    # Precisions 5/6, 3/5, 1/4, and 0/3, which exponential smoothing takes as 1/(2 * 3).
    found = scores.scores(["the cat sat on the mat"], ["the cat lay on the mat"])
    product = 5 / 6 * 3 / 5 * 1 / 4 * 1 / 6
    assert found["bleu"] == pytest.approx(100 * product**0.25)
    assert found["exact_match"] == 0
    # One word short: the brevity penalty alone.
    found = scores.scores(["a b c d e"], ["a b c d e f"])
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_all_references_count():
    hypotheses = ["the very good one", "a b c d"]
    references = [["x y z w", "the very good one"], ["a b c d"]]
    for tokenize in ("13a", "compound"):
        found = scores.scores(hypotheses, references, tokenize)
        assert found == pytest.approx({"bleu": 100, "chrf": 100, "exact_match": 1})
    assert scores.scores(hypotheses, ["x y z w", "a b c d"])["exact_match"] == 0.5
    rows = [[["a"], ["b"]], [["a", "b"]], references]
    names = [scores.signatures(references=row)["bleu"].split("|")[0] for row in rows]
    assert names == ["nrefs:1", "nrefs:2", "nrefs:var"]


def test_tokenisation_is_as_asked():
    hypothesis, reference = (
        ["the well-known cat , it sat"],
        ["the well known cat, it sat"],
    )
    found = {
        kind: scores.scores(hypothesis, reference, kind)["bleu"]
        for kind in ("13a", "none", "compound")
    }
    assert len(set(found.values())) == 3
    assert scores.scores(["a b, c d e"], ["a b , c d e"])["bleu"] > 99.99
    assert scores.scores(["a b, c d e"], ["a b , c d e"], "none")["bleu"] < 50
    zh = scores.scores(["我喜欢猫和狗"], ["我喜欢猫和鸟"], "zh")["bleu"]
    assert 50 < zh < 100


def test_exact_match_and_chrf_count_all():
    found = scores.scores(["a b", "c"], ["a b", "d"])
    assert found["exact_match"] == 0.5
    assert 0 < found["chrf"] < 100


def test_signatures_name_the_settings():
    found = scores.signatures("13a")
    assert "|tok:13a|" in found["bleu"]
    assert "version:" in found["chrf"]
    assert "|tok:none|" in scores.signatures("none")["bleu"]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="found 2 for 1"):
        scores.scores(["a"], ["a", "b"])
    with pytest.raises(InputError, match=r"eval\.bleu: expected one of 13a"):
        scores.scores(["a"], ["a"], "moses")
