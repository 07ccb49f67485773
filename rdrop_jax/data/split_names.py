"""Common names of splits in folders, tables and array files."""

import re
from collections.abc import Iterable

SPLITS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("validation", "val", "valid", "vali", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "te", "holdout", "heldout"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# Words that are ignored next to the name of a split.
_FILLERS = {"set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg"}
_SHORTEST = 3  # minimum letters of a word that is matched inside other words


def split_of(name: str) -> str | None:
    """Return the split that a folder or file is named after.

    Case, separators, digits and words such as "set" are ignored.

    Args:
      name: name without a suffix.

    Returns:
      "train", "validation" or "test"; None for any other name.

    Example:
      >>> [split_of(name) for name in ("Training", "seg_test", "val2017", "trains")]
      ['train', 'test', 'validation', None]
    """
    words = [word for word in _words(name) if word not in _FILLERS]
    if words == ["held", "out"]:
        words = ["heldout"]
    if len(words) != 1:
        return None
    (word,) = words
    return _SPLIT_OF.get(word) or _SPLIT_OF.get(word.removesuffix("set"))


def splits_in(name: str) -> set[str]:
    """Return the splits that a name contains as a word, plural or singular.

    Example:
      >>> splits_in("cats_train"), splits_in("Tests"), splits_in("latest")
      ({'train'}, {'test'}, set())
    """
    words = [
        form
        for word in _words(name)
        for form in (word, word.removesuffix("s"), word.removesuffix("set"))
        if len(form) >= _SHORTEST
    ]
    return {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}


def unclear(names: Iterable[str], known: Iterable[str] = ()) -> list[str]:
    """Return the names that may be splits but are ambiguous for `split_of`.

    Names that differ only in the word of a split, such as xtrain and xtest, are
    ambiguous. So are names with such a word (`splits_in`) if they are at least half of
    all names and name two different splits, or one that is not in ``known``.

    Args:
      names: names of folders or files, without suffixes, for which `split_of` is None.
      known: splits of the remaining names.

    Example:
      >>> unclear(["x_train", "x_test"]), unclear(["bullet train", "cat", "dog"])
      (['x_train', 'x_test'], [])
      >>> unclear(["Tests"], ["train"]), unclear(["Tests"], ["train", "test"])
      (['Tests'], [])
    """
    names, known = list(names), set(known)
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        for stem, split in _stems(name):
            stems.setdefault(stem, {})[split] = name
    alike = {n for found in stems.values() if len(found) > 1 for n in found.values()}
    if not known and alike:
        return [name for name in names if name in alike]
    worded = {name: splits_in(name) for name in names}
    found = [name for name in names if worded[name] - known]
    called = known.union(*worded.values())
    enough = known or 2 * len(found) >= len(names)
    return found if len(found) + len(known) > 1 and len(called) > 1 and enough else []


def _words(name: str) -> list[str]:
    """Split a name into lower-case words, also at camel case."""
    parted = name if name.isupper() else re.sub(r"(?<=[^\W_])(?=[A-Z][a-z])", " ", name)
    return [w for w in re.split(r"[\W_\d]+", parted.casefold()) if w]


def _stems(name: str) -> set[tuple[str, str]]:
    """Return the name with a split's word replaced by "*", and that split."""
    name = name.casefold()
    return {
        (name.replace(word, "*", 1), split)
        for word, split in _SPLIT_OF.items()
        if len(word) >= _SHORTEST and word in name
    }
