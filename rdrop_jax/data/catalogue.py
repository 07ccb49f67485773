"""Datasets of the TensorFlow Datasets catalogue, read without TensorFlow."""

import importlib.util
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from rdrop_jax import extras
from rdrop_jax.data import hub
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, lines
from rdrop_jax.files.disk import read_json
from rdrop_jax.files.roots import root, unprepared

_logger = logging.getLogger(__name__)
PREFIX = "tfds:"


def find(root: Path, name: str) -> Path:
    """Find the newest prepared version of a dataset, in array_record format.

    Args:
      root: folder of prepared datasets.
      name: dataset name with its config, such as ``glue/cola``; optionally a version.

    Returns:
      The folder of the version.

    Raises:
      InputError: not prepared, or in another format.
    """
    base = root / name
    versions = [base, *(p for p in base.glob("*") if p.is_dir())]
    there = [p for p in versions if (p / "dataset_info.json").is_file()]
    if not there:
        names = ", ".join(sorted(p.name for p in versions[1:])) or "nothing"
        raise InputError(
            f"data.name={PREFIX}{name}: no prepared dataset in {base}, which has "
            f"{names}. Prepare it, or append the name of one of its configurations"
        )
    newest = max(there, key=_version)
    kind = read_json(newest / "dataset_info.json").get("fileFormat")
    if kind != "array_record":
        raise InputError(
            f"{newest}: expected the format array_record, which needs no TensorFlow, "
            f"found {kind}. Prepare it with rdrop_jax.prepare in another --data_dir"
        )
    return newest


def prepared_folder(data: ConfigDict, page: str) -> Path:
    """Return the folder of the dataset that a config names, as `find` does.

    Args:
      data: the config's ``data``.
      page: documentation page for error messages.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    home, name = Path(root(data)), data.name.removeprefix(PREFIX).replace(":", "/")
    if not (home / name).is_dir():
        raise unprepared(data, "", page)
    return find(home, name)


def _version(folder: Path) -> list[int]:
    return [int(part) for part in folder.name.split(".") if part.isdigit()]


def splits(folder: Path) -> list[str]:
    """Return the names of the prepared splits."""
    path = folder / "dataset_info.json"
    try:
        return [str(split["name"]) for split in read_json(path)["splits"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected splits with names: {error!r}") from error


def classes(folder: Path, label: str = "label") -> tuple[str, ...]:
    """Return the class names of a feature; empty if unnamed."""
    path = folder / f"{label}.labels.txt"
    return tuple(lines.read(path)) if path.is_file() else ()


def read_rows(folder: Path, split: str, features: Iterable[str], **options: Any) -> Any:
    """Open a split as a sequence of dicts, which are read on demand.

    Args:
      folder: folder of a version.
      split: name of the split.
      features: features that the rows must have.
      options: further options of `as_data_source`.

    Raises:
      InputError: a missing feature, or fewer examples than in the index.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    found = [*(builder.info.features or ())]
    if not {*features} <= {*found}:
        raise InputError(
            f"{folder}: expected features {' and '.join(features)}, found "
            f"{', '.join(sorted(found))}. Set data.columns.* to names of features"
        )
    rows = builder.as_data_source(split, **options)
    wanted = builder.info.splits[split].num_examples
    if len(rows) != wanted:
        raise InputError(
            f"{folder}, {split}: expected {wanted} examples, found {len(rows)}"
        )
    return rows


class Examples:
    """Images and labels of one split.

    Args:
      folder: folder of a version.
      split: name of the split.
      columns: features of the images and of the labels.
    """

    labels = None

    def __init__(
        self, folder: Path, split: str, columns: tuple[str, str] = ("image", "label")
    ) -> None:
        from tensorflow_datasets import decode

        self._columns = columns
        self._source = read_rows(
            folder, split, columns, decoders={columns[0]: decode.SkipDecoding()}
        )
        self._name = f"{folder}, {split}"

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        image, label = (self._source[row][column] for column in self._columns)
        return {"image": image, "label": np.int64(label)}

    def __repr__(self) -> str:
        return f"Examples({self._name})"

    def name(self, row: int) -> str:
        return f"{self._name}, example {row}"


class Table:
    """Rows of one split, with what readers use of a ``datasets.Dataset``.

    Args:
      folder: folder of a version.
      split: name of the split.
      columns: features to read; all by default.
    """

    def __init__(self, folder: Path, split: str, columns: Sequence[str] = ()) -> None:
        import tensorflow_datasets as tfds

        self._folder, self._split = folder, split
        self.features = dict(tfds.builder_from_directory(str(folder)).info.features)
        self.column_names = list(columns or sorted(self.features))

    def select_columns(self, columns: Sequence[str]) -> "Table":
        return Table(self._folder, self._split, columns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in read_rows(self._folder, self._split, self.column_names):
            yield {column: _plain(row[column]) for column in self.column_names}

    def __getitem__(self, column: str) -> list[Any]:
        return [row[column] for row in self.select_columns([column])]


def _plain(value: Any) -> Any:
    """Convert arrays and bytes to lists, numbers and texts."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def load(data: ConfigDict, page: str) -> hub.Loaded:
    """Open the prepared dataset that a config names.

    Args:
      data: the config's ``data``.
      page: documentation page for error messages.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    folder = prepared_folder(data, page)
    return hub.Loaded(
        data.name,
        {
            folder.relative_to(root(data)).as_posix(): checksums.sha256(
                folder / "dataset_info.json"
            )
        },
        {split: Table(folder, split) for split in splits(folder)},
    )


def prepare(root: Path, name: str) -> Path:
    """Download a dataset of the catalogue and prepare it as array_record.

    Args:
      root: folder of prepared datasets.
      name: ``name`` or ``name/config`` of the dataset, optionally with ``:version``.

    Returns:
      The output folder.

    Raises:
      InputError: TensorFlow is not installed, the dataset is unknown, or no network.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name}: {extras.missing('tensorflow')} Training does not need it."
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise InputError(
            f"{name}: no such dataset in the catalogue: {error}"
        ) from error
    _logger.info("preparing %s in %s", builder.info.full_name, builder.data_path)
    try:
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        raise InputError(f"{name}: cannot be downloaded: {error}") from error
    return Path(builder.data_path)
