"""Text classification datasets: location, splits and classes. Needs no jax."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.data import catalogue, docstrings, splits, tables
from rdrop_jax.data import index as index_lib
from rdrop_jax.data.datasets import Dataset, is_named, prepared_folder
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, hub
from rdrop_jax.tasks.field_checks import check_choices
from rdrop_jax.tasks.text_classification import glue, text_files, text_hub
from rdrop_jax.tasks.text_classification.texts import (
    LABELS,
    Columns,
    Texts,
    collect,
    encode_labels,
    find_classes,
)
from rdrop_jax.training import workdir as workdir_lib

# The embedded default: subpackages of scipy with enough to learn from.
_PACKAGE, _SHORTEST, _RAREST = "scipy", 20, 50
_PARTS = {"train": 0.7, "validation": 0.1, "test": 0.2}


def split_names(data: ConfigDict) -> tuple[str, ...]:
    """Return the names of labelled splits, without reading files."""
    if data.name == "docstrings":
        return tuple(_PARTS)
    if is_own(data):
        return tuple(s for s in _PARTS if data.files[s] or s in held_out(data))
    named = _glue(data).splits
    if held_out(data):
        tests = [s.replace("validation", "test") for s in named if s != "train"]
        return ("train", "validation", *tests)
    return named


def is_own(data: ConfigDict) -> bool:
    """Return whether ``data.files`` names the splits, as files or by their names."""
    return data.name == "files" or _is_named(data)


def _is_named(data: ConfigDict) -> bool:
    """Return whether a name alone describes the dataset; GLUE of tfds has a table."""
    return is_named(data.name) and glue.task_of(data.name) not in glue.TASKS


def find(data: ConfigDict, commit: str = "") -> Dataset[Texts]:
    """Find the dataset that a config names.

    Args:
      data: the config's ``data``.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      The dataset, of which only names and indices are read.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    check_labels(data)
    if data.name == "docstrings":
        rows = functools.cache(_summaries)
        docstrings.root(_PACKAGE)
        return Dataset(
            {
                s: functools.partial(_docstrings, rows, s, data.split_seed)
                for s in _PARTS
            },
            lambda: {f"docstrings of {_PACKAGE}": docstrings.sha256(rows())},
        )
    if data.name == "files":
        return text_files.find(data)
    if _is_named(data):
        return text_hub.find(data, commit)
    if data.name.startswith(catalogue.PREFIX):
        return _catalogue(data)
    return _prepared(data)


def check_labels(data: ConfigDict) -> None:
    """Check the dataset name, the type of labels and the quoting.

    Raises:
      InputError: an invalid field.
    """
    check_choices(
        {
            "data.labels": (data.labels, LABELS),
            "data.quoting": (data.quoting, tables.QUOTING),
        }
    )
    splits.check_folds(data)
    if data.labels == "words" and data.columns.text_b:
        raise InputError(
            "data.columns.text_b: expected no second text for data.labels=words, found "
            f"{data.columns.text_b!r}"
        )
    if is_own(data):
        return
    embedded = data.name == "docstrings"
    wanted = "classes" if embedded or _glue(data).classes else "numbers"
    if data.labels != wanted:
        raise InputError(
            f"data.labels: expected {wanted} for {data.name}, found {data.labels}"
        )


def open_split(
    found: Dataset[Texts],
    data: ConfigDict,
    name: str,
    recorded: Mapping[str, str] | None = None,
) -> Texts:
    """Read one of the splits of `split_names`.

    Splits of ``files`` without a file are held out of the training rows, drawn with
    ``data.split_seed``. With GLUE and ``data.validation``, validation rows are held out
    too, and the published validation split is the test split.

    Args:
      found: the dataset.
      data: the config's ``data``.
      name: name of the split.
      recorded: checksums of a run's data by name. No split is held out of training
        rows that have changed.

    Returns:
      The rows of the split.

    Raises:
      InputError: the split is empty, or the training rows have changed.
    """
    parts = held_out(data)
    if not parts:
        texts = found.splits[name]()
    elif name in ("train", *parts):
        if recorded and data.name == "files":
            text_files.check_file("train", data)
            sums = text_files.sums(data, "train")
            workdir_lib.check_unchanged(recorded, sums, "data.files.train")
        rows = found.splits["train"]()
        texts = rows.take(_cut(found, data)[name])
    elif is_own(data) or data.name == "docstrings":
        texts = found.splits[name]()
    else:
        texts = found.splits[name.replace("test", "validation")]()
    if not len(texts):
        raise InputError(f"{text_files.origin(data, name)}: expected rows, found none")
    return texts


def held_out(data: ConfigDict) -> dict[str, float]:
    """Return the fraction or number of training rows to hold out for each split.

    A fold for validation has no size: 0.
    """
    if data.name == "docstrings":
        return {"validation": 0.0} if data.folds else {}
    sizes = {"validation": data.validation}
    if is_own(data):
        sizes["test"] = data.test
        sizes = {s: size for s, size in sizes.items() if not data.files[s]}
    sizes = {s: size for s, size in sizes.items() if size}
    return sizes | ({"validation": 0.0} if data.folds else {})


def drawn(data: ConfigDict) -> tuple[str, ...]:
    """Return the splits whose rows depend on ``data.split_seed``."""
    return tuple(_PARTS if data.name == "docstrings" else held_out(data))


def _cut(found: Dataset[Texts], data: ConfigDict) -> dict[str, np.ndarray]:
    """Return the row numbers of the splits that are held out, and of "train"."""

    def cut() -> dict[str, np.ndarray]:
        rows = found.splits["train"]()
        classes = None
        if data.folds and data.labels == "classes":
            ids, there = encode_labels(rows, data.labels, data.classes)
            classes = np.where(there > 0, ids, -1)
        groups, sizes = found.group_list(data, rows.places), held_out(data)
        return splits.cut(len(rows), sizes, data, classes=classes, groups=groups)

    return found.once(str(data), cut)


def provenance(found: Dataset[Texts], data: ConfigDict) -> dict[str, str]:
    """Return checksums of the data, and of the rows of a fold."""
    rows = splits.checksum(_cut(found, data)) if data.folds else {}
    return found.provenance() | rows


def notes(found: Dataset[Texts], data: ConfigDict) -> tuple[str, ...]:
    """Return notes on held-out splits, and on training rows without words or labels."""
    fold = f", fold {data.fold} of {data.folds}" if data.folds else ""
    origin = data.files.train if data.name == "files" else data.name
    cut = tuple(
        f"{s}: {len(open_split(found, data, s))} rows held out of {origin}"
        + (fold if s == "validation" else "")
        for s in held_out(data)
    )
    rows = found.splits["train"]()
    unlabelled = sum(label is None for label in rows.labels)
    counts = (
        (rows.left_out, "rows without words left out"),
        (unlabelled, "rows without a label"),
    )
    return (*cut, *(f"train: {n} {what}" for n, what in counts if n))


def completed(
    config: ConfigDict, commit: str = "", *, stored: bool = True
) -> ConfigDict:
    """Fill in the class names of a config, which the workdir stores.

    Prediction then needs no dataset, and a change of the classes between starts is
    detected.

    Args:
      config: config of a text classification run.
      commit: commit of a dataset of the Hub; "" takes the newest.
      stored: whether a workdir may have stored the config; its named splits, once
        complete, are then not looked up again.

    Returns:
      A locked copy, or the config itself if nothing is added.

    Raises:
      InputError: the training data are missing.
    """
    check_labels(config.data)
    data = config.data
    unnamed = not data.files.train or (data.labels != "numbers" and not data.classes)
    if _is_named(data) and (unnamed or not stored):
        config = config.copy_and_resolve_references().unlock()
        named = text_hub.splits(config.data, commit)
        if data.folds:  # instead of the dataset's validation split
            named.pop("validation", None)
        config.data.files.update(named)
        config.lock()
    data = config.data
    classes = data.classes or _classes(data, commit)
    unused = [s for s in ("validation", "test") if data.files[s] and data[s]]
    if not is_own(data):
        unused = []
    if tuple(classes) == tuple(data.classes) and not unused:
        return config
    filled = config.copy_and_resolve_references().unlock()
    filled.data.classes = classes
    for split in unused:  # superseded by their files
        filled.data[split] = 0.0
    return config_lib.finish(filled)


def check_training(config: ConfigDict, commit: str = "") -> None:
    """Check all files that a training run reads, before it starts.

    Args:
      config: config with class names.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Raises:
      InputError: a file or split is missing, or the rows of the test data have no
        label or one that is not in the training rows.
    """
    data = config.data
    if data.name == "files":
        for split in text_files.paths_of(data):
            text_files.check_file(split, data)
    found = find(data, commit)
    if not (is_own(data) and data.files.test and config.eval.test):
        return
    texts = found.splits["test"]()
    _, labelled = encode_labels(texts, data.labels, data.classes)
    if not labelled.any():
        raise InputError(
            f"data.files.test: expected labelled rows, found {len(texts)} rows without "
            "a label. Set eval.test=false."
        )


def _classes(data: ConfigDict, commit: str) -> tuple[str, ...]:
    if data.labels == "numbers":
        return ()
    if _is_named(data) and (named := find(data, commit).classes):
        return named
    if data.name == "docstrings" or is_own(data):
        return find_classes(find(data, commit).splits["train"](), data.labels)
    return _glue(data).classes


def _summaries() -> list[docstrings.Summary]:
    return docstrings.summaries(_PACKAGE, shortest=_SHORTEST, rarest=_RAREST)


def _docstrings(
    rows: Callable[[], list[docstrings.Summary]], split: str, split_seed: int
) -> Texts:
    cut = docstrings.split(rows(), _PARTS, split_seed)[split]
    named = (
        Row(f"docstring {i}", {"text": row.text, "label": row.subpackage})
        for i, row in enumerate(cut)
    )
    return collect(named, Columns())


def _glue(data: ConfigDict) -> glue.GlueTask:
    task = glue.task_of(data.name)
    if task not in glue.TASKS:
        known = ["docstrings", "files", *(glue.HUB + task for task in glue.TASKS)]
        hint = config_lib.suggest(data.name, known)
        raise InputError(
            f"data.name: expected docstrings, files, {hub.PREFIX}ORG/NAME or "
            f"{catalogue.PREFIX}NAME, found {data.name!r}."
            f"{hint or hub.hint('data.name', data.name)}"
        )
    return glue.TASKS[task]


def _prepared(data: ConfigDict) -> Dataset[Texts]:
    task = _glue(data)
    place = prepared_folder(data, instead=data.name.replace(glue.PREFIX, glue.HUB))
    index = index_lib.read_texts(place)
    named = Columns(text_b="text_b" if task.text_b else "")

    def read(split: str) -> Texts:
        return collect(tables.read(place / f"{split}.jsonl"), named)

    return Dataset(
        {s: functools.partial(read, s) for s in index["splits"]},
        lambda: {f"{k}.jsonl": s["sha256"] for k, s in index["splits"].items()},
        task.classes,
    )


def _catalogue(data: ConfigDict) -> Dataset[Texts]:
    task = _glue(data)
    place = catalogue.prepared_folder(data, "glue")
    # MNLI has two validation splits in the catalogue; use the matched one.
    names = {
        s: "validation_matched"
        if s == "validation" and glue.task_of(data.name) == "mnli"
        else s
        for s in task.splits
    }
    info = place / "dataset_info.json"
    return Dataset(
        {s: functools.partial(_examples, place, t, task) for s, t in names.items()},
        lambda: {info.name: checksums.sha256(info)},
        task.classes,
    )


def _examples(place: Path, split: str, task: glue.GlueTask) -> Texts:
    """Read a split of tensorflow-datasets, whose labels are class ids."""
    texts = [c for c in (task.text, task.text_b) if c]

    def rows() -> Iterator[Row]:
        source = catalogue.read_rows(place, split, (*texts, "label"))
        for number in range(len(source)):
            example = source[number]
            fields: dict[str, Any] = {c: example[c].decode() for c in texts}
            label = example["label"]
            fields["label"] = task.classes[int(label)] if task.classes else float(label)
            yield Row(f"{place}, {split}, example {number}", fields)

    return collect(rows(), Columns(task.text, task.text_b))


def check_data(config: ConfigDict, commit: str = "") -> ConfigDict:
    """Check the training data and fill in the class names.

    Args:
      config: config of the run.
      commit: commit of a dataset of the Hub; "" takes the newest.

    Returns:
      The config with its class names, so that prediction needs no dataset.

    Raises:
      InputError: the training data are missing, or labels do not fit.
    """
    config = completed(config, commit, stored=False)
    splits.check_group(config.data, held_out(config.data))
    check_training(config, commit)
    return config
