"""The user's files of labelled texts. Needs no jax."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.data import tables
from rdrop_jax.data.datasets import Dataset
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.files.roots import file_field, root
from rdrop_jax.tasks.text_classification import words
from rdrop_jax.tasks.text_classification.texts import (
    Columns,
    Texts,
    collect,
    groups_of,
)


def columns(data: ConfigDict) -> Columns:
    """Return the columns that a config names."""
    c = data.columns
    return Columns(c.text, c.text_b, c.label, data.labels == "words")


def paths_of(data: ConfigDict) -> dict[str, Path]:
    """Return the paths of the files that a config names, by split."""
    return {s: Path(root(data), data.files[s]) for s in data.files if data.files[s]}


def check_file(split: str, data: ConfigDict) -> None:
    """Raise an `InputError` if the file of a split is missing.

    Raises:
      InputError: the file is missing; the message names the config field.
    """
    path = paths_of(data)[split]
    if not tables.shards(path):
        field = file_field(data, split)
        raise InputError(f"{field}: expected a file, found none at {path}")


def origin(data: ConfigDict, split: str) -> str:
    """Return the field that selects the rows of a split, for messages."""
    if data.files.get(split):
        return file_field(data, split)
    return f"data.name={data.name}, {split}"


def find(data: ConfigDict) -> Dataset[Texts]:
    """Find the files of a config; each is opened when its split is read.

    Raises:
      InputError: no training file or no validation data.
    """
    paths = paths_of(data)
    if "train" not in paths:
        raise InputError(
            "data.files.train: expected a file of training rows, found none"
        )
    if "validation" not in paths and not (data.validation or data.folds):
        raise InputError(
            "data.files.validation: expected a file to select by, or "
            "data.validation=a share or number of training rows, found neither"
        )
    for split, path in paths.items():
        tables.check_format(path, f"data.files.{split}", lines=data.labels == "words")

    def read(split: str) -> Texts:
        check_file(split, data)
        return collect(_rows(paths[split], data), columns(data))

    def groups() -> dict[str, Any]:
        return groups_of(_rows(paths["train"], data), data.columns.group)

    return Dataset(
        {s: functools.partial(read, s) for s in paths},
        lambda: sums(data, *paths),
        groups=groups,
    )


def sums(data: ConfigDict, *splits: str) -> dict[str, str]:
    """Return the checksums of the files of some splits by name."""
    paths = paths_of(data)
    found = [
        shard
        for split in splits
        for shard in tables.shards(paths[split]) or (paths[split],)
    ]
    return checksums.of_files(found, root(data))


def _rows(path: Path, data: ConfigDict) -> Iterator[Row]:
    """Read the rows of a table, or of a CoNLL file if words have labels."""
    if data.labels == "words" and not tables.is_table(path):
        return words.read_conll(path, data.columns.text, data.columns.label)
    return tables.read(path, quoting=data.quoting)


def inputs(name: str, data: ConfigDict) -> Iterator[Row | str | tuple[str, ...]]:
    """Read inputs for prediction: see `tables.inputs`; also .conll for words."""
    path = Path(name)
    if data.labels == "words" and path.suffix == words.CONLL and path.is_file():
        return _rows(path, data)
    return tables.inputs(name, data.quoting)
