"""Splits: their common names, and holding rows out of the training rows."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence

import numpy as np
import scipy.sparse.csgraph
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from rdrop_jax.errors import InputError

NAMES = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("validation", "val", "valid", "vali", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "te", "holdout", "heldout"),
}
SPLITS = tuple(NAMES)
_SPLIT_OF = {word: split for split, words in NAMES.items() for word in words}
# Words that are ignored next to the name of a split.
_FILLERS = {"set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg"}
VALIDATION_ROWS = "validation rows"  # name of their checksum
_SHORTEST = 3  # minimum letters of a word that is matched inside other words
# Keys of more items than this do not group them.
_COMMON = 20
# Rows of a held-out split without a size.
_HELD_OUT = 1000


def hold_out(
    rows: int, sizes: Mapping[str, float | None], split_seed: int
) -> dict[str, Int[np.ndarray, " subset"]]:
    """Hold splits out of the training rows at random.

    Args:
      rows: number of training rows.
      sizes: number of rows, or fraction below 1, by split. None is 1,000 rows, but at
        most a tenth.
      split_seed: seed of the draw.

    Returns:
      Sorted row numbers for "train" and for every split of ``sizes``.

    Raises:
      InputError: a size leaves no training rows or an empty split.
    """
    order = np.random.default_rng(split_seed).permutation(rows)
    found, start = {}, 0
    for name, size in sizes.items():
        end = start + _count(name, size, rows, start)
        found[name] = np.sort(order[start:end])
        start = end
    return found | {"train": np.sort(order[start:])}


def _count(name: str, size: float | None, rows: int, start: int) -> int:
    """Return the number of rows of a split, after ``start`` rows of earlier splits."""
    if size is None:
        return max(1, min(_HELD_OUT, rows // 10))
    count = round(rows * size) if size < 1 else int(size)
    if not 0 < count < rows - start:
        raise InputError(
            f"data.{name}: expected a fraction below 1 or a number of rows that "
            f"selects 1 to {rows - start - 1} of the {rows} training rows, got "
            f"{size:g} ({count} rows)"
        )
    return count


def check_folds(data: ConfigDict) -> None:
    """Check ``data.folds`` and ``data.fold``.

    Raises:
      InputError: an invalid value, or folds in addition to a validation split.
    """
    if data.folds < 0 or data.folds == 1:
        raise InputError(f"data.folds: expected 0 or at least 2, found {data.folds}")
    if not 0 <= data.fold < max(1, data.folds):
        wanted = f"0 to {data.folds - 1}" if data.folds else "0 without data.folds"
        raise InputError(f"data.fold: expected {wanted}, found {data.fold}")
    if data.folds and data.files.validation:
        raise InputError(
            f"data.folds: expected 0 next to data.files.validation="
            f"{data.files.validation}, found {data.folds}. Remove one of them"
        )


def check_group(data: ConfigDict, held_out: Collection[str]) -> None:
    """Check that ``data.columns.group`` has an effect.

    Args:
      data: the config's ``data``.
      held_out: names of the splits that are held out of the training rows.

    Raises:
      InputError: a group column, and no split is held out.
    """
    if data.columns.group and not held_out:
        raise InputError(
            "data.columns.group: expected none if no rows are held out of the training "
            f"rows, found {data.columns.group!r}. Set data.folds, or remove it"
        )


def cut(
    rows: int,
    sizes: Mapping[str, float | None],
    data: ConfigDict,
    *,
    classes: Int[np.ndarray, " rows"] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, Int[np.ndarray, " subset"]]:
    """Hold splits out of the training rows, a fold for validation if there are folds.

    Args:
      rows: number of training rows.
      sizes: see `hold_out`. A fold has no size, and all folds have the same test rows.
      data: the config's ``data``: folds, fold, split_seed and class names.
      classes: class id of each row, -1 if it has none, to have the same share of each
        class in all folds; None for rows without classes.
      groups: group of each row; a group is in one split only.

    Returns:
      Sorted row numbers by split.

    Raises:
      InputError: a size leaves no training rows, there are fewer rows or groups than
        folds, or a fold lacks a class.
    """
    ids: dict[Hashable, int] = {}
    units = np.array([ids.setdefault(g, len(ids)) for g in groups or range(rows)])
    if data.folds:
        sizes = {s: size for s, size in sizes.items() if s != "validation"}
    if groups is None:
        found = hold_out(rows, sizes, data.split_seed)
    else:
        found = _hold_out_whole(units, sizes, data.split_seed)
    if not data.folds:
        return found
    left = found["train"]
    kinds = np.zeros(len(left), int) if classes is None else classes[left]
    chosen = _in_fold(kinds, units[left], data, "rows" if groups is None else "groups")
    return found | {"train": left[~chosen], "validation": left[chosen]}


def _hold_out_whole(
    groups: Int[np.ndarray, " rows"],
    sizes: Mapping[str, float | None],
    split_seed: int,
) -> dict[str, Int[np.ndarray, " subset"]]:
    """Hold out whole groups, in random order, until a split has its size."""
    order = np.random.default_rng(split_seed).permutation(groups.max() + 1)
    rank = np.argsort(order)[groups]
    ends = np.cumsum(np.bincount(rank))  # rows up to each group
    found, begin, start = {}, 0, 0
    for name, size in sizes.items():
        count = _count(name, size, len(groups), start)
        end = int(np.searchsorted(ends, start + count)) + 1
        if end >= len(ends):
            raise InputError(
                f"data.{name}: expected a size that leaves groups for training, found "
                f"{size} for {len(groups)} rows in {len(ends)} groups"
            )
        found[name] = np.flatnonzero((rank >= begin) & (rank < end))
        begin, start = end, int(ends[end - 1])
    return found | {"train": np.flatnonzero(rank >= begin)}


def _in_fold(
    classes: Int[np.ndarray, " rows"],
    units: Int[np.ndarray, " rows"],
    data: ConfigDict,
    what: str,
) -> Bool[np.ndarray, " rows"]:
    """Return which rows are in fold ``data.fold``.

    Args:
      classes: class id of each row; -1 if it has none.
      units: group of each row, or its number.
      data: the config's ``data``.
      what: "rows" or "groups", for messages.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow

    count = len(np.unique(units))
    if count < data.folds:
        raise InputError(
            f"data.folds: expected at most {count}, the number of {what} of the "
            f"training data, found {data.folds}"
        )
    known = np.unique(classes[classes >= 0]).tolist()
    for kind in known:
        if (there := len(np.unique(units[classes == kind]))) < data.folds:
            raise _no_class(data, kind, f"{there} {what}")
    source = np.random.MT19937(np.random.SeedSequence(data.split_seed))
    random = np.random.RandomState(source)
    with warnings.catch_warnings():  # of few rows without a class
        warnings.simplefilter("ignore", UserWarning)
        if what == "rows":
            plain = StratifiedKFold(data.folds, shuffle=True, random_state=random)
            found = plain.split(classes, classes)
        else:
            grouped = StratifiedGroupKFold(
                data.folds, shuffle=True, random_state=random
            )
            found = grouped.split(classes, classes, units)
        folds = [rows for _, rows in found]
    for number, rows in enumerate(folds):
        if lacking := {*known} - {*classes[rows].tolist()}:
            raise _no_class(data, min(lacking), f"none in fold {number}")
    chosen = np.zeros(len(classes), bool)
    chosen[folds[data.fold]] = True
    return chosen


def _no_class(data: ConfigDict, kind: int, found: str) -> InputError:
    name = data.classes[kind] if data.classes else kind
    return InputError(
        f"data.folds: expected rows of class {name} in each of {data.folds} folds, "
        f"found {found}. Use fewer folds or merge classes"
    )


def checksum(rows: Mapping[str, Int[np.ndarray, " subset"]]) -> dict[str, str]:
    """Return a checksum of the validation rows of `cut`, for `Task.provenance`."""
    numbers = rows["validation"].astype("<i8").tobytes()
    return {VALIDATION_ROWS: hashlib.sha256(numbers).hexdigest()}


def hold_out_groups(
    keys: Sequence[set[str]], share: float, largest: int, split_seed: int
) -> dict[str, list[int]]:
    """Hold out a test and a validation split so that few keys are in two splits.

    Args:
      keys: keys of each item.
      share: fraction of the items in each held-out split.
      largest: maximum number of items of a group (see `grouped`) that is held out.
      split_seed: seed of the draw.

    Returns:
      Item numbers by split, in the order of the draw.
    """
    groups = grouped(keys)
    order = np.random.default_rng(split_seed).permutation(len(groups))
    found: dict[str, list[int]] = {split: [] for split in SPLITS}
    size = round(share * len(keys))
    for group in (groups[i] for i in order):
        fits = (
            split
            for split in ("test", "validation")
            if len(group) <= min(size - len(found[split]), largest)
        )
        found[next(fits, "train")] += group
    return found


def grouped(keys: Sequence[set[str]]) -> list[list[int]]:
    """Group items that share a key, ignoring keys of more than 20 items.

    Args:
      keys: keys of each item.

    Returns:
      Groups of item numbers, ordered by their first item.

    Example:
      >>> grouped([{"a"}, {"b"}, {"a", "c"}])
      [[0, 2], [1]]
    """
    counts = Counter(key for each in keys for key in each)
    nodes = {key: i for i, key in enumerate(counts, len(keys))}
    edges = [
        (i, nodes[key])
        for i, each in enumerate(keys)
        for key in each
        if counts[key] <= _COMMON
    ]
    ends = np.array(edges, np.int64).reshape(-1, 2).T
    shape = (len(keys) + len(nodes),) * 2
    graph = scipy.sparse.coo_array((np.ones(len(edges), bool), ends), shape)
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels[: len(keys)].tolist()):
        groups.setdefault(label, []).append(i)
    return list(groups.values())


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
