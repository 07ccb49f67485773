"""Names by which people call splits: folders, tables and array files."""

import re

SPLITS = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("validation", "val", "valid", "vali", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "te", "holdout", "heldout"),
}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
# Words that say nothing beside the name of a split.
_FILLERS = {"set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg"}


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after.

    Capital letters, separators, digits and words such as "set" do not matter.

    Args:
      name: without an ending.

    Returns:
      "train", "validation" or "test"; None for any other name.

    Example:
      >>> [split_of(name) for name in ("Training", "seg_test", "val2017", "trains")]
      ['train', 'test', 'validation', None]
    """
    words = [w for w in re.split(r"[\W_\d]+", name.casefold()) if w]
    words = [word for word in words if word not in _FILLERS]
    if words == ["held", "out"]:
        words = ["heldout"]
    if len(words) != 1:
        return None
    (word,) = words
    return _SPLIT_OF.get(word) or _SPLIT_OF.get(word.removesuffix("set"))
