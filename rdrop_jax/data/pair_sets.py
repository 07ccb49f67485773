"""Parallel corpora by name: where they are and which splits they have. Needs no jax."""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.data import catalogue, cldr, parallel, prepared_text
from rdrop_jax.data.parallel import Pairs
from rdrop_jax.errors import InputError

SPLITS = ("train", "validation", "test")
# Held out where a corpus of files has no such split.
HELD_OUT = 1000


@dataclass(frozen=True)
class PairSet:
    """A corpus that is there.

    Attributes:
      splits: read when called.
      provenance: checksums, for result.json.
    """

    splits: Mapping[str, Callable[[], Pairs]]
    provenance: Callable[[], dict[str, str]]


def find(data: ConfigDict) -> PairSet:
    """The corpus that a config names.

    Args:
      data: the config's ``data``.

    Returns:
      The corpus, nothing of it read but its index.

    Raises:
      InputError: it is not there; says how to prepare it.
    """
    if data.name == "cldr_names":
        return _cldr(data)
    if data.name == "files":
        return _files(data)
    if data.name in prepared_text.NAMES:
        return _prepared(data)
    if data.name.startswith(catalogue.PREFIX):
        return _catalogue(data)
    raise InputError(
        "data.name: expected one of cldr_names, files, "
        f"{', '.join(prepared_text.NAMES)}, or {catalogue.PREFIX}NAME, found "
        f"{data.name!r}"
    )


def _cldr(data: ConfigDict) -> PairSet:
    cldr.check(data.source, data.target)

    def splits() -> dict[str, Pairs]:
        return cldr.names(data.source, data.target, data.split_seed)

    def split(name: str) -> Callable[[], Pairs]:
        return lambda: splits()[name]

    return PairSet(
        {name: split(name) for name in SPLITS},
        lambda: {"cldr_names": cldr.sha256(splits())},
    )


def _files(data: ConfigDict) -> PairSet:
    if not data.files.train:
        raise InputError(
            "data.files.train: expected a .tsv or .jsonl file, or what comes before "
            f".{data.source} and .{data.target} in the names of two text files, found "
            "nothing"
        )
    root = Path(data.dir or os.environ.get("RDROP_DATA_DIR", ""))
    files = {
        split: parallel.find(root / data.files[split], data.source, data.target)
        for split in SPLITS
        if data.files[split]
    }
    columns = (data.columns.source, data.columns.target)
    missing = {split: HELD_OUT for split in SPLITS if split not in files}

    def read(split: str) -> Pairs:
        if split in files and (split != "train" or not missing):
            pairs = parallel.read(files[split], columns)
            return parallel.without_empty(pairs) if split == "train" else pairs
        whole = parallel.without_empty(parallel.read(files["train"], columns))
        return parallel.hold_out(whole, missing, data.split_seed)[split]

    return PairSet(
        {split: _call(read, split) for split in SPLITS},
        lambda: {str(path): _sha256(path) for both in files.values() for path in both},
    )


def _prepared(data: ConfigDict) -> PairSet:
    languages = data.name.split("_")[1:]
    if sorted(languages) != sorted((data.source, data.target)):
        raise InputError(
            f"data.source, data.target: expected {' and '.join(languages)}, the "
            f"languages of {data.name}, found {data.source!r} and {data.target!r}"
        )
    root = data.dir or os.environ.get("RDROP_DATA_DIR", "")
    folder = Path(root) / data.name
    if not (folder / "index.json").is_file():
        raise InputError(_how_to_prepare(data, " --from DOWNLOADS"))
    index = prepared_text.read_index(folder)

    def read(split: str) -> Pairs:
        return parallel.read(parallel.find(folder / split, data.source, data.target))

    return PairSet(
        {split: _call(read, split) for split in SPLITS},
        lambda: {name: entry["sha256"] for name, entry in index["files"].items()},
    )


def _catalogue(data: ConfigDict) -> PairSet:
    """As ``tfds:wmt14_translate/de-en``: features named like the languages."""
    root = Path(data.dir or os.environ.get("RDROP_DATA_DIR", ""))
    name = data.name.removeprefix(catalogue.PREFIX)
    if not (root / name).is_dir():
        raise InputError(_how_to_prepare(data, ""))
    folder = catalogue.find(root, name)
    missing = {*SPLITS} - {*catalogue.splits(folder)}
    if missing:
        raise InputError(f"{folder}: expected splits {', '.join(SPLITS)}, found others")
    return PairSet(
        {
            split: _call(
                lambda s: catalogue.read_texts(folder, s, data.source, data.target),
                split,
            )
            for split in SPLITS
        },
        lambda: {str(folder): _sha256(folder / "dataset_info.json")},
    )


def _how_to_prepare(data: ConfigDict, files: str) -> str:
    root = data.dir or os.environ.get("RDROP_DATA_DIR", "")
    where = f"in {root}" if root else "and neither data.dir nor $RDROP_DATA_DIR is set"
    return (
        f"data.name={data.name}: not prepared {where}. Prepare it once:\n"
        f"  python -m rdrop_jax.prepare {data.name} --data_dir {root or 'DATA'}{files}"
        f"\nand train with --config.data.dir={root or 'DATA'}; see docs/translation.md"
    )


def _call(read: Callable[[str], Pairs], split: str) -> Callable[[], Pairs]:
    return lambda: read(split)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
