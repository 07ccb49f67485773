"""Parallel corpora: files, prepared corpora, and datasets by name. Needs no jax."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.data import hub as hub_data
from rdrop_jax.data import index as index_lib
from rdrop_jax.data import tables
from rdrop_jax.data.datasets import Dataset, is_named, load, prepared_folder
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.files.roots import EMBEDDED, check_sizes, file_field, root
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.tasks.seq2seq.parallel import Form, Pairs


@dataclass(frozen=True)
class PairSet(Dataset[Pairs]):
    """A parallel corpus on disk.

    Attributes:
      check_files: function that raises an `InputError` if a training file is missing.
      held_out: names of the splits that are held out of the training files.
      train: checksums of the training files.
    """

    check_files: Callable[[], None] = lambda: None
    held_out: tuple[str, ...] = ()
    train: Callable[[], dict[str, str]] = dict


def computed(
    read: Callable[[], Mapping[str, Pairs]], provenance: Callable[[], dict[str, str]]
) -> PairSet:
    """Make the pair set of an embedded corpus.

    Args:
      read: returns the pairs of all splits.
      provenance: checksums of the corpus.
    """

    def split(name: str) -> Pairs:
        return read()[name]

    return PairSet(
        {name: functools.partial(split, name) for name in SPLITS}, provenance
    )


def files(data: ConfigDict, endings: tuple[str, str]) -> PairSet:
    """Find the user's files.

    Args:
      data: the config's ``data``.
      endings: file name endings of source and target text files.

    Returns:
      The pairs; splits without files are held out of training.

    Raises:
      InputError: no training file is named.
    """
    if not data.files.train:
        raise InputError(
            f"data.files.train: expected a table ({', '.join(tables.KINDS)}), or what "
            f"comes before .{endings[0]} and .{endings[1]} in the names of two text "
            "files, found nothing"
        )
    named = [split for split in SPLITS if data.files[split]]

    def paths(split: str) -> tuple[Path, ...]:
        path = Path(root(data)) / data.files[split]
        return parallel.find(path, *endings, field=file_field(data, split))

    columns = (data.columns.source, data.columns.target)
    form = parallel.form_of(Path(data.files.train))
    missing = {split: data[split] for split in SPLITS[1:] if split not in named}

    def read(split: str) -> Pairs:
        return parallel.read(paths(split), columns, form, data.quoting)

    def sums(split: str) -> dict[str, str]:
        found = [shard for path in paths(split) for shard in tables.shards(path)]
        return checksums.of_files(found, root(data))

    def check_files() -> None:
        for split in named:
            paths(split)

    return PairSet(
        _with_held_out(read, missing, data.split_seed),
        lambda: {
            name: digest for split in named for name, digest in sums(split).items()
        },
        check_files=check_files,
        held_out=tuple(missing),
        train=lambda: sums("train"),
    )


def _with_held_out(
    read: Callable[[str], Pairs], missing: Mapping[str, float | None], split_seed: int
) -> dict[str, Callable[[], Pairs]]:
    """Hold missing splits out of the training pairs, and drop empty training pairs."""

    @functools.cache
    def parts() -> dict[str, Pairs]:
        pairs = read("train")
        full = parallel.without_empty(pairs)
        found = {"train": full}
        if missing and len(full):
            found = parallel.hold_out(full, missing, split_seed)
        if not len(found["train"]):
            raise InputError(
                f"{pairs.origin}: expected pairs to train on, found {len(pairs)}, "
                f"{len(pairs) - len(full)} of them with an empty text and the rest "
                "with a text that is held out for validation or test"
            )
        lines = [
            f"{s}: {len(found[s])} rows held out of {full.origin}" for s in missing
        ]
        notes = (*full.notes, *lines)
        return {split: replace(part, notes=notes) for split, part in found.items()}

    def split_of(split: str) -> Pairs:
        return parts()[split] if split in ("train", *missing) else read(split)

    return {split: functools.partial(split_of, split) for split in SPLITS}


def named(
    data: ConfigDict,
    languages: tuple[str, str] | None = None,
    commit: str = "",
    page: str = "translation",
) -> PairSet:
    """Find a dataset of the Hugging Face Hub or of TensorFlow Datasets.

    Args:
      data: the config's ``data``.
      languages: source and target language. They are read from a column
        ``translation``, or from columns of their names, if the dataset has these.
      commit: commit to use; "" takes the newest of the revision.
      page: documentation page for error messages.

    Returns:
      The pairs; splits that the dataset lacks are held out of training.

    Raises:
      InputError: the dataset cannot be loaded, or lacks a split or column.
    """
    columns = (data.columns.source, data.columns.target)
    loaded = functools.cache(functools.partial(load, data, commit, page))

    @functools.cache
    def chosen() -> dict[str, str]:
        there = loaded().splits
        # The presets' names of files and splits, which the dataset may lack.
        usual = {s: (s, f"{s}.jsonl") for s in SPLITS}
        names = {
            s: "" if name in usual[s] and name not in there else name
            for s, name in data.files.items()
        }
        return hub_data.choose(loaded(), names)

    def read(split: str) -> Pairs:
        found = loaded()
        there = found.splits[chosen()[split]].column_names
        nested = languages is not None and "translation" in there
        own = not {*columns} <= {*there} and {*(languages or ())} & {*there}
        wanted = languages if languages and (nested or own) else columns
        rows = hub_data.rows(
            found, chosen()[split], ["translation"] if nested else there
        )
        if nested:
            rows = (replace(r, fields=r.fields["translation"] or {}) for r in rows)
        return parallel.collect(rows, wanted, f"{found.text}, {chosen()[split]}")

    @functools.cache
    def splits() -> dict[str, Callable[[], Pairs]]:
        missing = {s: data[s] for s in SPLITS[1:] if s not in chosen()}
        return _with_held_out(read, missing, data.split_seed)

    return PairSet(
        {split: functools.partial(lambda s: splits()[s](), split) for split in SPLITS},
        lambda: dict(loaded().provenance),
        check_files=lambda: hub_data.check_sizes(data, chosen()),
    )


def form(data: ConfigDict) -> Form:
    """Return the text normalization of a run, for prediction without its data."""
    if data.name == "files":
        return parallel.form_of(Path(data.files.train))
    if data.name in EMBEDDED or is_named(data.name):
        return parallel.one_line
    return parallel.stripped  # prepared corpora are lines of text


def with_files(config: ConfigDict, ending: str = "") -> ConfigDict:
    """Remove default validation and test files from a config if they are missing.

    Their pairs are then held out of the training pairs. The workdir stores the result,
    so that files added or removed later do not change the splits.

    Args:
      config: config of a translation or summarization run.
      ending: ending of the preset's file names, which are the names of the splits.

    Returns:
      A locked copy, or the config itself if nothing changes.

    Raises:
      InputError: a held-out size for a split that has its own file.
    """
    data = config.data
    place = Path(root(data))
    lost = [
        split
        for split in SPLITS[1:]
        if data.files[split] == split + ending
        and not list(place.glob(f"{split}{ending or '.'}*"))
    ]
    if data.name != "files":
        return config
    if lost:
        filled = config.copy_and_resolve_references().unlock()
        for split in lost:
            filled.data.files[split] = ""
        config = filled.lock()
    check_sizes(config.data)
    return config


def check_data(
    config: ConfigDict,
    commit: str = "",
    *,
    find: Callable[[ConfigDict, str], PairSet],
    ending: str = "",
) -> ConfigDict:
    """Check that the training data exist; hold splits without files out of training.

    Args:
      config: config of the run.
      commit: commit of a dataset of the Hub; "" takes the newest.
      find: finds the dataset of the config's ``data`` at a commit.
      ending: see `with_files`.

    Returns:
      The config, without the preset's files that do not exist.

    Raises:
      InputError: the training data are missing, or a split has a size and a file.
    """
    config = with_files(config, ending)
    find(config.data, commit).check_files()
    return config


def prepared(
    data: ConfigDict, endings: tuple[str, str], *, note: str = "", instead: str = ""
) -> PairSet:
    """Find a corpus written by `rdrop_jax.prepare`.

    Args:
      data: the config's ``data``.
      endings: file name endings of sources and targets.
      note: last line of the error message.
      instead: name on the Hub of a corpus that only version 0.1 prepared.

    Raises:
      InputError: not prepared; the message explains how to prepare it.
    """
    folder = prepared_folder(
        data, "DOWNLOADS", "translation", note=note, instead=instead
    )
    index = index_lib.read_texts(folder)

    def read(split: str) -> Pairs:
        return parallel.read(parallel.find(folder / split, *endings))

    return PairSet(
        {split: functools.partial(read, split) for split in SPLITS},
        lambda: {name: entry["sha256"] for name, entry in index["files"].items()},
    )
