"""Names in two languages, split without leaks."""

import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.translation import cldr


def test_no_side_of_a_pair_stands_in_two_splits():
    splits = cldr.names("en", "de", 0)
    sizes = {name: len(pairs) for name, pairs in splits.items()}
    assert sizes["train"] > 3000
    assert min(sizes.values()) > 300
    for side in ("source", "target"):
        sets = [set(getattr(pairs, side)) for pairs in splits.values()]
        assert sum(map(len, sets)) == len(set.union(*sets))
    for pairs in splits.values():
        assert all(
            s and t and s != t for s, t in zip(pairs.source, pairs.target, strict=True)
        )
        assert len(set(zip(pairs.source, pairs.target, strict=True))) == len(pairs)


def test_variants_of_an_emoji_stay_together():
    for split, pairs in cldr.names("en", "de", 0).items():
        if any(s.endswith("juggling") for s in pairs.source):
            found = [s for s in pairs.source if "juggling" in s]
            assert {"man juggling", "woman juggling dark skin tone"} <= set(found), (
                split
            )
            break
    else:
        raise AssertionError("no such emoji")


def test_both_directions_hold_the_same_pairs():
    there, back = cldr.names("en", "de", 0), cldr.names("de", "en", 0)
    for split in there:
        assert there[split].source == back[split].target
    assert cldr.sha256(there) != cldr.sha256(cldr.names("en", "de", 1))


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(InputError, match="expected en and de"):
        cldr.check_languages("en", "fr")
    monkeypatch.setattr(cldr.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"babel.*pip install -e .*\[train\]"):
        cldr.check_languages("en", "de")
