"""Labelled texts by name: where they are, their splits and classes. Needs no jax."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.data import catalogue, docstrings, glue, tables
from rdrop_jax.data.roots import root, unprepared
from rdrop_jax.data.tables import Row
from rdrop_jax.data.texts import (
    LABELS,
    Columns,
    Texts,
    collect,
    encode_labels,
    find_classes,
)
from rdrop_jax.errors import InputError
from rdrop_jax.runtime import seal

# The embedded default: subpackages of scipy with enough to learn from.
_PACKAGE, _SHORTEST, _RAREST = "scipy", 20, 50
_PARTS = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclass(frozen=True)
class TextSet:
    """A dataset that is there.

    Attributes:
      splits: read when called.
      classes: names by class id; empty for numbers, and where only the rows tell.
      provenance: checksums, for result.json.
    """

    splits: Mapping[str, Callable[[], Texts]]
    classes: tuple[str, ...]
    provenance: Callable[[], dict[str, str]]


def split_names(data: ConfigDict) -> tuple[str, ...]:
    """Splits that can be trained on and scored, known without looking at files."""
    if data.name == "docstrings":
        return tuple(_PARTS)
    if data.name == "files":
        held_out = {"validation"} if data.held_out else set()
        return tuple(s for s in _PARTS if data.files[s] or s in held_out)
    named = [s for s in _glue(data).splits if not s.startswith("test")]
    if data.held_out:
        tests = [s.replace("validation", "test") for s in named if s != "train"]
        return ("train", "validation", *tests)
    return tuple(named)


def find(data: ConfigDict) -> TextSet:
    """The dataset that a config names.

    Args:
      data: the config's ``data``.

    Returns:
      The dataset, nothing read but names and indices.

    Raises:
      InputError: it is not there; says how to prepare it.
    """
    check(data)
    if data.name == "docstrings":
        rows = functools.cache(_summaries)
        docstrings.root(_PACKAGE)
        return TextSet(
            {
                s: functools.partial(_docstrings, rows, s, data.split_seed)
                for s in _PARTS
            },
            (),
            lambda: {f"docstrings of {_PACKAGE}": docstrings.sha256(rows())},
        )
    if data.name == "files":
        return _files(data)
    if data.name.startswith(catalogue.PREFIX):
        return _catalogue(data)
    return _prepared(data)


def check(data: ConfigDict) -> None:
    """Checks names and sizes.

    Raises:
      InputError: names the field, what was expected and what was found.
    """
    if data.labels not in LABELS:
        raise InputError(
            f"data.labels: expected one of {', '.join(LABELS)}, found {data.labels!r}"
        )
    if data.name in ("docstrings", "files"):
        return
    task = _glue(data)
    wanted = "classes" if task.classes else "numbers"
    if data.labels != wanted:
        raise InputError(
            f"data.labels: expected {wanted} for {data.name}, found {data.labels}"
        )


def open_split(found: TextSet, data: ConfigDict, name: str) -> Texts:
    """A split of `split_names`.

    With ``data.held_out`` that many training rows, drawn by ``data.split_seed``, are
    the validation split, and what is published for validation is the test split.

    Args:
      found: the dataset.
      data: the config's ``data``.
      name: of the split.

    Returns:
      Its rows.

    Raises:
      InputError: no such rows, or none to train on.
    """
    if not data.held_out or data.name == "docstrings":
        texts = found.splits[name]()
    elif name in ("train", "validation"):
        rows = found.splits["train"]()
        if not 0 < data.held_out < len(rows):
            raise InputError(
                f"data.held_out: expected fewer than the {len(rows)} training rows, "
                f"found {data.held_out}"
            )
        order = np.random.default_rng(data.split_seed).permutation(len(rows))
        cut = np.split(order, [data.held_out])
        texts = rows.take(np.sort(cut[name == "train"]))
    elif data.name == "files":
        texts = found.splits[name]()
    else:
        texts = found.splits[name.replace("test", "validation")]()
    if not len(texts):
        raise InputError(f"{data.name}, {name}: expected rows, found none")
    return texts


def completed(config: ConfigDict) -> ConfigDict:
    """A config with the names of its classes, which stand in the workdir from then on.

    Prediction needs no dataset then, and one that changes its classes between starts
    is noticed.

    Args:
      config: of a text classification.

    Returns:
      A locked copy; the config itself where there is nothing to add.

    Raises:
      InputError: training data that is not there, or labels of the test file that
        they do not have: better told before a training than after it.
    """
    data = config.data
    check(data)
    classes = data.classes or _classes(data)
    if data.name == "files" and data.files.test and config.eval.test:
        encode_labels(find(data).splits["test"](), data.labels, classes)
    if tuple(classes) == tuple(data.classes):
        return config
    filled = config.copy_and_resolve_references().unlock()
    filled.data.classes = classes
    return config_lib.finish(filled)


def _classes(data: ConfigDict) -> tuple[str, ...]:
    if data.labels == "numbers":
        return ()
    if data.name in ("docstrings", "files"):
        return find_classes(find(data).splits["train"](), data.labels)
    return _glue(data).classes


def columns(data: ConfigDict) -> Columns:
    """The columns that a config names."""
    c = data.columns
    return Columns(c.text, c.text_b, c.label)


def _summaries() -> list[docstrings.Summary]:
    return docstrings.summaries(_PACKAGE, shortest=_SHORTEST, rarest=_RAREST)


def _docstrings(
    rows: Callable[[], list[docstrings.Summary]], split: str, split_seed: int
) -> Texts:
    cut = docstrings.cut(rows(), _PARTS, split_seed)[split]
    named = (
        Row(f"docstring {i}", {"text": row.text, "label": row.subpackage})
        for i, row in enumerate(cut)
    )
    return collect(named, Columns())


def _glue(data: ConfigDict) -> glue.GlueTask:
    name = data.name.removeprefix(catalogue.PREFIX)
    task = name.removeprefix(glue.PREFIX)
    if not name.startswith(glue.PREFIX) or task not in glue.TASKS:
        known = ["docstrings", "files", *(glue.PREFIX + task for task in glue.TASKS)]
        hint = config_lib.suggest(data.name, known)
        raise InputError(
            f"data.name: expected one of {', '.join(known)}, or "
            f"{catalogue.PREFIX}{glue.PREFIX}TASK, found {data.name!r}.{hint}"
        )
    return glue.TASKS[task]


def _prepared(data: ConfigDict) -> TextSet:
    task = _glue(data)
    place = Path(root(data), data.name)
    if not (place / "index.json").is_file():
        raise unprepared(data, f"{task.folder}.zip", "glue")
    index = glue.read_index(place)
    named = Columns(text_b="text_b" if task.text_b else "")
    return TextSet(
        {s: _table(place / f"{s}.jsonl", named) for s in index["splits"]},
        task.classes,
        lambda: {f"{k}.jsonl": s["sha256"] for k, s in index["splits"].items()},
    )


def _catalogue(data: ConfigDict) -> TextSet:
    task, name = _glue(data), data.name.removeprefix(catalogue.PREFIX)
    home = Path(root(data))
    if not (home / name).is_dir():
        raise unprepared(data, "", "glue")
    place = catalogue.find(home, name)
    # Where the whole of MNLI has two validation splits, the catalogue names them both.
    names = {
        s: "validation_matched" if s == "validation" and name.endswith("mnli") else s
        for s in task.splits
        if not s.startswith("test")
    }
    info = place / "dataset_info.json"
    return TextSet(
        {
            s: functools.cache(functools.partial(_examples, place, t, task))
            for s, t in names.items()
        },
        task.classes,
        lambda: {info.name: seal.sha256(info)},
    )


def _examples(place: Path, split: str, task: glue.GlueTask) -> Texts:
    """A split that tensorflow-datasets prepared; labels there are class ids."""
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(place)).as_data_source(split)
    names = {c: task.features.get(c, c) for c in (task.text, task.text_b) if c}

    def rows() -> Iterator[Row]:
        for number in range(len(source)):
            example = source[number]
            fields: dict[str, Any] = {
                column: example[feature].decode() for column, feature in names.items()
            }
            label = example["label"]
            fields["label"] = task.classes[int(label)] if task.classes else float(label)
            yield Row(f"{place}, {split}, example {number}", fields)

    return collect(rows(), Columns(task.text, task.text_b))


def _table(path: Path, named: Columns) -> Callable[[], Texts]:
    return functools.cache(lambda: collect(tables.read(path), named))


def _files(data: ConfigDict) -> TextSet:
    paths = {s: Path(root(data), data.files[s]) for s in data.files if data.files[s]}
    if "train" not in paths:
        raise InputError(
            "data.files.train: expected a file of training rows, found none"
        )
    if "validation" not in paths and not data.held_out:
        raise InputError(
            "data.files.validation: expected a file to select by, or data.held_out="
            "rows of the training file, found neither"
        )
    if "validation" in paths and data.held_out:
        raise InputError(
            f"data.held_out: expected 0 beside data.files.validation, found "
            f"{data.held_out}"
        )
    for split, path in paths.items():
        tables.kind(path)
        if not path.is_file():
            raise InputError(
                f"data.files.{split}: expected a file, found none at {path}"
            )

    def provenance() -> dict[str, str]:
        return {p.name: seal.sha256(p) for p in paths.values()}

    return TextSet(
        {s: _table(p, columns(data)) for s, p in paths.items()}, (), provenance
    )
