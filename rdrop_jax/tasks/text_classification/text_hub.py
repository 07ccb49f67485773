"""Labelled texts by the name of a dataset. Needs no jax."""

import functools
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.data import hub as data_hub
from rdrop_jax.data.datasets import Dataset, load
from rdrop_jax.data.labels import is_missing
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.text_classification.text_files import columns
from rdrop_jax.tasks.text_classification.texts import Texts, collect, groups_of

PAGE = "glue"


def splits(data: ConfigDict, commit: str = "") -> dict[str, str]:
    """Return the dataset's splits for ``data.files``; a test split needs labels.

    Args:
      data: the config's ``data``.
      commit: commit to use; "" takes the newest of the revision.

    Raises:
      InputError: the dataset cannot be loaded, or lacks a split.
    """
    found, label = load(data, commit, PAGE), data.columns.label
    named = {split: data.files[split] for split in data.files}
    chosen = data_hub.choose(found, named)
    if "test" in chosen and not named["test"]:
        # "a.b" is also the field b of a column a.
        rows = data_hub.rows(found, chosen["test"], [label, label.partition(".")[0]])
        if all(_is_unlabelled(row.get(label)) for row in rows):
            del chosen["test"]
    return chosen


def _is_unlabelled(label: Any) -> bool:
    each = label if isinstance(label, list) else [label]
    return all(one == -1 or is_missing(one) for one in each)


def find(data: ConfigDict, commit: str = "") -> Dataset[Texts]:
    """Find the dataset that ``data.name`` names.

    Args:
      data: the config's ``data``, with names of splits in ``files``.
      commit: commit to use; "" takes the newest of the revision.

    Raises:
      InputError: the dataset cannot be loaded, or no validation data.
    """
    names = {s: data.files[s] for s in data.files if data.files[s]}
    if "train" not in names:  # a config that `text_sets.completed` has not seen
        names = splits(data, commit)
    if "validation" not in names and not (data.validation or data.folds):
        raise InputError(
            "data.files.validation: expected the name of a split to select by, or "
            "data.validation=a share or number of training rows, found neither"
        )
    named = columns(data)
    wanted = [c for c in (named.text, named.text_b, named.label) if c]

    @functools.cache
    def found() -> data_hub.Loaded:
        loaded = load(data, commit, PAGE)
        data_hub.choose(loaded, names)  # refuses unknown splits
        return loaded

    def read(split: str) -> Texts:
        all_columns = found().splits[names[split]].column_names
        kept = wanted if {*wanted} <= {*all_columns} else all_columns
        return collect(data_hub.rows(found(), names[split], kept), named)

    def groups() -> dict[str, Any]:
        return groups_of(
            data_hub.rows(found(), names["train"], [data.columns.group])
            if data.columns.group in found().splits[names["train"]].column_names
            else data_hub.rows(found(), names["train"], wanted),
            data.columns.group,
        )

    def classes() -> tuple[str, ...]:
        return data_hub.class_names(found(), names["train"], named.label)

    return Dataset(
        {s: functools.partial(read, s) for s in names},
        lambda: dict(found().provenance),
        classes() if data.labels in ("classes", "words") and not data.classes else (),
        groups=groups,
    )
