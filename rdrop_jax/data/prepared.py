"""Prepared datasets: array_record files and an index, written whole or not at all.

    DATA_DIR/NAME/index.json
    DATA_DIR/NAME/SPLIT-00000.array_record, ...

A record of an image dataset is its class id, 4 bytes little-endian, and then the bytes
of the encoded image. ``index.json`` holds name, format, classes, features, per split
the files with their number of records, and sizes and checksums of the sources.
"""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.runtime.disk import sync_folder

FORMAT = 1
_LABEL = struct.Struct("<I")
IMAGE_FEATURES = {"label": "uint32, little-endian", "image": "an encoded image"}


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared dataset.

    Raises:
      InputError: there is none, one that is damaged or of another format, or a file is
        not there.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the index of a prepared dataset, found none: {error}"
        ) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT}, found another; prepare it again"
        )
    try:
        sizes = {
            name: shard["bytes"]
            for files in index["splits"].values()
            for name, shard in files.items()
        }
        _ = index["classes"], index["features"], index["sources"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: expected splits, classes, features and sources, found a damaged "
            f"index: {error}; prepare it again"
        ) from error
    for name, expected in sizes.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != expected:
            raise InputError(
                f"{folder / name}: expected {expected} bytes, as {path.name} says, "
                f"found {size or 'no such file'}; prepare again"
            )
    return index


class Records:
    """The images of one split, read from disk as they are asked for."""

    labels = None

    def __init__(self, folder: Path, index: dict[str, Any], split: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._split = split
        self._name = str(folder)
        shards = index["splits"][split]
        # With the counts in the name no file is opened before it is read.
        paths = [
            f"{folder / name}[0:{shard['rows']}]" for name, shard in shards.items()
        ]
        self._source = ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        record = self._source[row]
        (label,) = _LABEL.unpack_from(record)
        return {"image": record[_LABEL.size :], "label": label}

    def __repr__(self) -> str:
        return f"Records({self._name}, {self._split})"

    def name(self, row: int) -> str:
        return f"{self._name}, {self._split}, record {row}"


def record(label: int, image: bytes) -> bytes:
    """One record, as `Records` reads it."""
    return _LABEL.pack(label) + image


class Writer:
    """Writes a dataset beside its place and moves it there when it is whole.

    What an interrupted writer left is used again: a shard that was finished is not
    written anew.

    Args:
      folder: where the dataset will stand; must not be there.
      sources: name of each source to its checksums; shards from other sources are
        thrown away.
    """

    def __init__(self, folder: Path, sources: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._sources = sources
        self._splits: dict[str, dict[str, dict[str, int]]] = {}
        begun = self._partial / "sources.json"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(begun.read_bytes()) != sources:
                shutil.rmtree(self._partial)
        with _explained(folder.parent):
            self._partial.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps(sources))
        written = sum(p.stat().st_size for p in self._partial.iterdir())
        needed = sum(source["bytes"] for source in sources.values()) - written
        free = shutil.disk_usage(self._partial).free
        if free < needed:
            raise InputError(
                f"--data_dir: expected {needed / 2**30:.1f} GiB free in "
                f"{folder.parent}, found {free / 2**30:.1f}"
            )

    def write(
        self,
        split: str,
        rows: int,
        records: Callable[[int], Iterable[bytes]],
        shard: int,
    ) -> Iterator[int]:
        """Writes a split in shards.

        Args:
          split: its name.
          rows: how many records there must be.
          records: ``start -> records from there on``.
          shard: records per file.

        Yields:
          How many records are written, after every shard.

        Raises:
          InputError: other than ``rows`` records.
        """
        files = self._splits.setdefault(split, {})
        source: Iterator[bytes] | None = None
        for start in range(0, rows, shard):
            name = f"{split}-{start // shard:05d}.array_record"
            count = min(shard, rows - start)
            path = self._partial / name
            if not path.exists():
                source = iter(records(start)) if source is None else source
                _write_shard(path, source, count, f"{split}: expected {rows} records")
            else:
                source = None
            files[name] = {"rows": count, "bytes": path.stat().st_size}
            yield start + count
        if source is not None and next(source, None) is not None:
            raise InputError(f"{split}: expected {rows} records, found more")

    def finish(self, classes: Sequence[str], features: dict[str, str]) -> Path:
        """Writes the index and moves the dataset to its place."""
        index = {
            "format": FORMAT,
            "name": self._folder.name,
            "features": features,
            "splits": self._splits,
            "rows": {
                split: sum(shard["rows"] for shard in files.values())
                for split, files in self._splits.items()
            },
            "sources": self._sources,
            "classes": list(classes),
        }
        with _explained(self._folder.parent):
            with (self._partial / "index.json").open("w") as file:
                file.write(json.dumps(index, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            (self._partial / "sources.json").unlink()
            sync_folder(self._partial)
            os.replace(self._partial, self._folder)
            sync_folder(self._folder.parent)
        return self._folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--data_dir: cannot write in {folder}: {error}") from error


def _write_shard(path: Path, source: Iterator[bytes], count: int, wanted: str) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    aside = path.with_name(path.name + ".tmp")
    writer = ArrayRecordWriter(str(aside), "group_size:1")
    try:
        for done in range(count):
            found = next(source, None)
            if found is None:
                raise InputError(f"{wanted}, found fewer: {path.name} ends at {done}")
            writer.write(found)
    finally:
        writer.close()
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


def check_images(index: dict[str, Any], folder: Path) -> None:
    """Refuses a prepared dataset of something other than images."""
    if index["features"] != IMAGE_FEATURES:
        raise InputError(
            f"{folder}: expected records of {IMAGE_FEATURES}, found {index['features']}"
        )
