"""BLEU, chrF and exact match against values worked out by hand."""

import math

import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.scoring import translation


def test_bleu_by_hand():
    # Precisions 5/6, 3/5, 1/4, and 0/3, which exponential smoothing takes as 1/(2 * 3).
    found = translation.scores(["the cat sat on the mat"], ["the cat lay on the mat"])
    product = 5 / 6 * 3 / 5 * 1 / 4 * 1 / 6
    assert found["bleu"] == pytest.approx(100 * product**0.25)
    assert found["exact_match"] == 0
    # One word short: the brevity penalty alone.
    found = translation.scores(["a b c d e"], ["a b c d e f"])
    assert found["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 5))


def test_tokenisation_is_as_asked():
    hypothesis, reference = (
        ["the well-known cat , it sat"],
        ["the well known cat, it sat"],
    )
    found = {
        kind: translation.scores(hypothesis, reference, kind)["bleu"]
        for kind in ("13a", "none", "compound")
    }
    assert len(set(found.values())) == 3
    assert translation.scores(["a b, c d e"], ["a b , c d e"])["bleu"] > 99.99
    assert translation.scores(["a b, c d e"], ["a b , c d e"], "none")["bleu"] < 50
    zh = translation.scores(["我喜欢猫和狗"], ["我喜欢猫和鸟"], "zh")["bleu"]
    assert 50 < zh < 100


def test_exact_match_and_chrf_count_all():
    found = translation.scores(["a b", "c"], ["a b", "d"])
    assert found["exact_match"] == 0.5
    assert 0 < found["chrf"] < 100


def test_signatures_name_the_settings():
    found = translation.signatures(["a"], ["a"], "13a")
    assert "|tok:13a|" in found["bleu"]
    assert "version:" in found["chrf"]
    assert "|tok:none|" in translation.signatures(["a"], ["a"], "none")["bleu"]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="found 2 for 1"):
        translation.scores(["a"], ["a", "b"])
    with pytest.raises(InputError, match=r"eval\.bleu: expected one of 13a"):
        translation.scores(["a"], ["a"], "moses")
