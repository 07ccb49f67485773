"""English and German names from CLDR, from the packages babel and emoji.

A toy corpus that needs no download: lower-cased names of emoji, countries, languages,
scripts and currencies. It trains in minutes; results do not transfer to real corpora.
"""

import hashlib
import importlib.util
import re
from collections.abc import Iterator

from rdrop_jax import extras
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq.parallel import Pairs

LANGUAGES = ("en", "de")
# Skin tones, hair, variation selectors, and gender after a joiner.
_DETAIL = re.compile("[\U0001f3fb-\U0001f3ff\U0001f9b0-\U0001f9b3\ufe0f\u200d♀♂]")
_PEOPLE = re.compile("[\U0001f468\U0001f469\U0001f9d1\U0001f474\U0001f475\U0001f9d3]")
# One of ten groups is for test and one for validation.
_PARTS = {0: "test", 1: "validation"}


def check_languages(source: str, target: str) -> None:
    """Check the languages and that the packages are installed.

    Raises:
      InputError: unsupported languages, or a missing package.
    """
    if {source, target} != set(LANGUAGES):
        raise InputError(
            "data.source, data.target: expected en and de, the languages of data.name="
            f"cldr_names, found {source!r} and {target!r}"
        )
    for package in ("babel", "emoji"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"data.name=cldr_names: expected the package {package}, which contains "
                f"the names, found none. Run `{extras.install('train')}`."
            )


def names(source: str, target: str, split_seed: int) -> dict[str, Pairs]:
    """Split names by group, such as variants of an emoji or forms of a currency.

    Args:
      source: "en" or "de".
      target: the other language.
      split_seed: seed of the split assignment.

    Returns:
      "train", "validation" and "test". Pairs with equal source and target are omitted,
      as are held-out pairs whose source or target is in an earlier split.
    """
    splits: dict[str, dict[tuple[str, str], None]] = {
        split: {} for split in ("train", "validation", "test")
    }
    for group, *both in sorted({*_emoji(), *_locale()}):
        by_language = dict(zip(LANGUAGES, both, strict=True))
        if by_language["en"] != by_language["de"]:
            pair = (by_language[source], by_language[target])
            splits[_part(group, split_seed)][pair] = None
    found = {}
    seen: tuple[set[str], set[str]] = (set(), set())
    for split, pairs in splits.items():
        new = [p for p in pairs if p[0] not in seen[0] and p[1] not in seen[1]]
        kept = list(pairs) if split == "train" else new
        texts = [pair[0] for pair in kept], [pair[1] for pair in kept]
        found[split] = Pairs(*texts, f"cldr_names, {split}")
        seen = seen[0].union(texts[0]), seen[1].union(texts[1])
    return found


def sha256(splits: dict[str, Pairs]) -> str:
    """Return the checksum of all names, which depend on the packages' versions."""
    value = hashlib.sha256()
    for split in splits.values():
        for pair in zip(split.source, split.target, strict=True):
            value.update("\t".join((*pair, "\n")).encode())
    return value.hexdigest()


def _part(group: str, split_seed: int) -> str:
    digest = hashlib.sha256(f"{split_seed} {group}".encode()).digest()
    return _PARTS.get(int.from_bytes(digest[:8]) % 10, "train")


def _clean(name: str) -> str:
    return " ".join(name.replace("_", " ").replace(",", ", ").lower().split())


def _emoji() -> Iterator[tuple[str, str, str]]:
    import emoji

    emoji.config.load_language(list(LANGUAGES))
    for symbol, known in emoji.EMOJI_DATA.items():
        if all(language in known for language in LANGUAGES):
            base = _PEOPLE.sub("\U0001f9d1", _DETAIL.sub("", symbol))
            en, de = (_clean(known[x].strip(":")) for x in LANGUAGES)
            yield f"emoji {base}", en, de


def _locale() -> Iterator[tuple[str, str, str]]:
    from babel import Locale

    en, de = (Locale(language) for language in LANGUAGES)
    for kind in ("territories", "languages", "scripts", "variants", "currencies"):
        one, other = getattr(en, kind), getattr(de, kind)
        for code in one.keys() & other.keys():
            base = code.split("_")[0]
            yield f"{kind} {base}", _clean(one[code]), _clean(other[code])
