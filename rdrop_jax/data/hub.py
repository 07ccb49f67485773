"""Datasets of the Hugging Face Hub, through its library ``datasets``."""

import errno
import functools
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import extras
from rdrop_jax.config import suggest
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.files.disk import read_json

_FIELD = "data.name"
# Branch of the Hub's copy in Parquet, with a folder for each configuration
# (huggingface.co/docs/dataset-viewer/parquet).
CONVERTED = "refs/convert/parquet"
# Names of the splits in the order of preference.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "validation_matched"),
    "test": ("test",),
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A dataset that its name has found.

    Attributes:
      text: the name, ``hf:ORG/NAME[/CONFIG][@REVISION]`` or ``tfds:NAME``.
      provenance: commit of the repository, or checksum of the prepared dataset.
      splits: by name, a ``datasets.Dataset`` or `rdrop_jax.data.catalogue.Table`.
    """

    text: str
    provenance: Mapping[str, str]
    splits: Mapping[str, Any]


@functools.cache
def load(text: str, commit: str = "") -> Loaded:
    """Download a dataset, or find it in the cache; code of its repository never runs.

    The result is the same for the lifetime of the process.

    Args:
      text: ``hf:ORG/NAME[/CONFIG][@REVISION]``.
      commit: commit to use instead of the revision; "" uses the revision.

    Raises:
      InputError: one line with the cause and the remedy.
    """
    name = hub.parse(_FIELD, text, parts=True)
    with _explained(text, name):
        revision = commit or _commit(name)
        builder = _builder(name, revision)
        if revision and builder.hash != revision:  # offline: the newest copy
            version = str(builder.config.version)
            builder = _cached(name, builder.config.name, version, revision)
            if not Path(builder.cache_dir).is_dir():
                raise InputError(
                    f"{_FIELD}: {text}: expected commit {revision}, found none in the "
                    "cache. Connect to the network, and start again"
                )
        _prepare(builder, text, name)
        splits = dict(builder.as_dataset())
    _logger.info("%s: %s, commit %s", _FIELD, text, builder.hash)
    return Loaded(text, {text: str(builder.hash)}, splits)


def _builder(name: hub.Name, revision: str) -> Any:
    """Return the library's reader of a configuration, which may be in the cache."""
    from datasets import load_dataset_builder

    place = f"hf://datasets/{name.repo}"
    commit = revision or name.revision or None
    if name.revision != CONVERTED:
        return load_dataset_builder(place, name.part or None, revision=commit)
    try:
        builder = load_dataset_builder(place, data_dir=name.part, revision=commit)
    except ValueError:  # offline, the library does not find a folder in its cache
        found = _cached_folders(name, revision)
        if not found:
            raise
        return _cached(name, *max(found, key=lambda p: p.stat().st_mtime).parts[-3:])
    builder.info.description = name.part  # the cache stores it: `_cached_folders`
    return builder


def _cached(name: hub.Name, config: str, version: str, commit: str) -> Any:
    from datasets.packaged_modules.cache.cache import Cache

    return Cache(
        repo_id=name.repo,
        dataset_name=name.repo.rpartition("/")[2],
        config_name=config,
        version=version,
        hash=commit,
    )


def _cached_folders(name: hub.Name, revision: str) -> list[Path]:
    """Return the cached copies of a folder of the branch in Parquet."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    org, _, repo = name.repo.rpartition("/")
    place = "___".join(filter(None, (org, camelcase_to_snakecase(repo))))
    infos = Path(config.HF_DATASETS_CACHE, place).glob(
        f"*/*/{revision or '*'}/dataset_info.json"
    )
    return [
        info.parent for info in infos if read_json(info).get("description") == name.part
    ]


def _commit(name: hub.Name) -> str:
    """Return the commit of a revision.

    The cache records it for when the Hub cannot be reached or refuses access.

    Returns:
      The commit; "" if the cache has none for the main branch, which then is that of
      its newest copy.
    """
    from huggingface_hub import HfApi, constants, errors

    def resolve(local: bool) -> str:
        revision = name.revision or None
        found = HfApi().resolve_revision(
            name.repo, repo_type="dataset", revision=revision, local_files_only=local
        )
        return str(found.resolved)

    try:
        return resolve(local=constants.is_offline_mode())
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        raise
    except errors.HTTPError as error:
        try:
            return resolve(local=True)
        except errors.RevisionResolutionError:
            raise error from None
    except errors.RevisionResolutionError as error:
        if not name.revision:
            return ""
        raise errors.LocalEntryNotFoundError(str(error)) from error.__cause__


def _prepare(builder: Any, text: str, name: hub.Name) -> None:
    """Download and convert a dataset; keep nothing that comes from a corrupt file."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    place = Path(builder.cache_dir)
    if place.is_dir():
        builder.download_and_prepare()
        return
    repo = repo_folder_name(repo_id=name.repo, repo_type="dataset")
    files = Path(constants.HF_HUB_CACHE, repo, "snapshots", str(builder.hash))
    try:
        builder.download_and_prepare()
    finally:
        try:
            hub.check_content(_FIELD, text, files)
        except InputError:
            shutil.rmtree(place, ignore_errors=True)
            raise


@contextmanager
def _explained(text: str, name: hub.Name) -> Iterator[None]:
    """Convert errors of the library to one line each."""
    try:
        from datasets import exceptions
        from huggingface_hub import constants, errors
    except ModuleNotFoundError as error:
        raise InputError(
            f"{_FIELD}: {text}: {extras.missing(str(error.name), 'hub')}"
        ) from error
    start = f"{_FIELD}: {text}: "
    with hub.explained(_FIELD, text, name):
        try:
            yield
        except InputError:
            raise
        # `_commit` has found the repository.
        except (exceptions.DatasetNotFoundError, errors.GatedRepoError) as error:
            raise InputError(
                f"{start}expected access to the dataset, which is gated. Accept its "
                f"terms at {constants.ENDPOINT}/datasets/{name.repo}, and set HF_TOKEN "
                "to a token of your account"
            ) from error
        except (
            exceptions.DatasetsError,
            OSError,
            ValueError,
            RuntimeError,
        ) as error:
            if _is_full(error) or _is_full(error.__cause__):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            of_files = exceptions.DatasetsError, FileNotFoundError
            if isinstance(error, errors.LocalEntryNotFoundError) or (
                isinstance(error, OSError) and not isinstance(error, of_files)
            ):
                raise
            if "scripts are no longer supported" in str(error):
                raise InputError(
                    f"{start}expected files of data, found a script, which is never "
                    "run. If the Hub has converted the dataset to Parquet, append "
                    f"@{CONVERTED} to the name"
                ) from error
            raise InputError(f"{start}cannot be read: {_line(error)}") from error


def _is_full(error: BaseException | None) -> bool:
    """Return whether an error is that of a full disk; the library's has no number."""
    return isinstance(error, OSError) and (
        error.errno in hub.SPACE or "Not enough disk space" in str(error)
    )


def _line(error: BaseException) -> str:
    shown = error.__cause__ or error
    return f"{' '.join(str(shown).split()):.300}" or type(shown).__name__


def choose(found: Loaded, named: Mapping[str, str]) -> dict[str, str]:
    """Return the dataset's split for each of train, validation and test.

    Args:
      found: the dataset.
      named: split of the dataset that the user names; "" takes the usual names, except
        those that the user gives to another split.

    Returns:
      Names of splits; a split that the dataset lacks is absent.

    Raises:
      InputError: no such split, or no training data.
    """
    chosen = {}
    for split, usual in _SPLITS.items():
        name = named.get(split, "")
        if name and name not in found.splits:
            raise InputError(
                f"data.files.{split}: expected a split of {found.text}: "
                f"{', '.join(found.splits)}, found {name!r}."
                f"{suggest(name, found.splits)}"
            )
        free = {*found.splits} - {*named.values()}
        there = [name] if name else [s for s in usual if s in free]
        if there:
            chosen[split] = there[0]
    if "train" not in chosen:
        raise InputError(
            f"data.files.train: expected the name of a split of {found.text} to train "
            f"on: {', '.join(found.splits)}, found none"
        )
    return chosen


def check_sizes(data: ConfigDict, chosen: Mapping[str, str]) -> None:
    """Reject a held-out size for a split that the dataset has.

    Args:
      data: the config's ``data``; a size of None or 0 holds nothing out.
      chosen: names of the dataset's splits, see `choose`.

    Raises:
      InputError: the dataset has a split whose size is set.
    """
    for split in ("validation", "test"):
        if split in chosen and data[split]:
            raise InputError(
                f"data.{split}: expected no size to hold out, because {data.name} has "
                f"the split {chosen[split]}, found {data[split]:g}. Remove it"
            )


def class_names(found: Loaded, split: str, column: str) -> tuple[str, ...]:
    """Return the class names of a column or of its lists, by id; empty if unnamed."""
    feature = found.splits[split].features.get(column)
    feature = getattr(feature, "feature", feature)
    return tuple(getattr(feature, "names", None) or ())


def rows(found: Loaded, split: str, columns: Sequence[str]) -> Iterator[Row]:
    """Read some columns of a split; class ids become names, and -1 None.

    Args:
      found: the dataset.
      split: a split of the dataset.
      columns: columns to read; those that the dataset lacks are ignored.
    """
    table = found.splits[split]
    kept = [c for c in dict.fromkeys(columns) if c in table.column_names]
    names = {c: class_names(found, split, c) for c in kept}
    for number, values in enumerate(table.select_columns(kept)):
        fields = {
            c: _named(values[c], names[c]) if names[c] else values[c] for c in kept
        }
        yield Row(f"{found.text}, {split}, row {number}", fields)


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    return names[value] if type(value) is int and 0 <= value < len(names) else None
