"""Datasets: where they are, and their splits. Needs no jax."""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ml_collections import ConfigDict

from rdrop_jax.data import catalogue
from rdrop_jax.data import hub as hub_data
from rdrop_jax.data.labels import is_missing
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.files.roots import root, unprepared

Rows = TypeVar("Rows")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Dataset(Generic[Rows]):
    """A dataset.

    Attributes:
      splits: functions that read the dataset's own splits, by name; each reads once.
      provenance: checksums, for result.json.
      classes: class names by id; empty for a dataset without classes, or if they must
        be read from rows.
      notes: messages about skipped files.
      groups: function that reads the group of each training row, by the row's name;
        None if the dataset has no groups.
    """

    splits: Mapping[str, Callable[[], Rows]]
    provenance: Callable[[], dict[str, str]]
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    groups: Callable[[], Mapping[str, Hashable]] | None = None
    _results: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, name: Hashable, compute: Callable[[], Result]) -> Result:
        """Return the result of a function; it is called once for each name."""
        if name not in self._results:
            self._results[name] = compute()
        found: Result = self._results[name]
        return found

    def group_list(
        self, data: ConfigDict, names: Iterable[str]
    ) -> list[Hashable] | None:
        """Return the groups of the training rows; None without ``data.columns.group``.

        Raises:
          InputError: no such column, or a row without a group.
        """
        if not data.columns.group:
            return None
        if self.groups is None:
            raise InputError(
                f"data.columns.group: expected no column for data.name={data.name}, "
                f"found {data.columns.group!r}"
            )
        found = self.groups()
        for name, group in found.items():
            if is_missing(group) or not isinstance(group, Hashable):
                raise InputError(
                    f"{name}: expected a text or number as group in "
                    f"{data.columns.group!r} (data.columns.group), found {group!r}"
                )
        return [found[name] for name in names]

    def __post_init__(self) -> None:
        once = {name: functools.cache(read) for name, read in self.splits.items()}
        object.__setattr__(self, "splits", once)


def is_named(name: str) -> bool:
    """Return whether ``data.name`` is ``hf:ORG/NAME`` or ``tfds:NAME``."""
    return hub.is_name(name) or name.startswith(catalogue.PREFIX)


def load(data: ConfigDict, commit: str = "", page: str = "data") -> hub_data.Loaded:
    """Load a dataset of the Hugging Face Hub or of TensorFlow Datasets by its name.

    Args:
      data: the config's ``data``, whose name `is_named`.
      commit: commit of a dataset of the Hub; "" takes the newest of the revision.
      page: documentation page for error messages.

    Raises:
      InputError: one line with the cause and the remedy.
    """
    if hub.is_name(data.name):
        return hub_data.load(data.name, commit)
    return catalogue.load(data, page)


def prepared_folder(
    data: ConfigDict,
    sources: str = "",
    page: str = "",
    *,
    note: str = "",
    instead: str = "",
) -> Path:
    """Return the folder of a dataset that `rdrop_jax.prepare` wrote.

    Args:
      data: the config's ``data``.
      sources: names of the source files.
      page: documentation page for error messages.
      note: last line of the error message.
      instead: name on the Hub of a dataset that only version 0.1 prepared.

    Raises:
      InputError: not prepared; the message explains how to get the dataset.
    """
    folder = Path(root(data), data.name)
    if not (folder / "index.json").is_file():
        if instead:
            raise InputError(
                f"data.name={data.name}: expected {folder}, prepared by version 0.1, "
                f"found no such folder. Use --config.data.name={instead}"
            )
        raise unprepared(data, sources, page, note)
    return folder
