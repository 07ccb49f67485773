"""Prepared datasets: array_record files and an index, written atomically.

    DATA_DIR/NAME/index.json
    DATA_DIR/NAME/SPLIT-00000.array_record, ...

A record of an image dataset is the class id (4 bytes, little-endian) followed by the
encoded image. ``index.json`` contains name, format, classes, features, the files of
each split with their number of records, and sizes and checksums of the sources.
"""

import contextlib
import json
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax.data import index as index_lib
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import publish

_LABEL = struct.Struct("<I")
IMAGE_FEATURES = {"label": "uint32, little-endian", "image": "an encoded image"}


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a prepared dataset.

    Raises:
      InputError: the index is missing, corrupt or of an unsupported format, a file is
        missing, or the records are not images.
    """
    index = index_lib.read(folder, _sizes)
    if index["features"] != IMAGE_FEATURES:
        raise InputError(
            f"{folder}: expected records of {IMAGE_FEATURES}, found {index['features']}"
        )
    return index


def _sizes(index: dict[str, Any]) -> dict[str, int]:
    _ = index["classes"], index["features"], index["sources"].items()
    return {
        name: shard["bytes"]
        for files in index["splits"].values()
        for name, shard in files.items()
    }


class Records:
    """Images of one split, read from disk on demand."""

    labels = None

    def __init__(self, folder: Path, index: dict[str, Any], split: str) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._split = split
        self._name = str(folder)
        shards = index["splits"][split]
        # Record counts in the paths avoid opening files before they are read.
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
    """Encode one record in the format that `Records` reads."""
    return _LABEL.pack(label) + image


class Writer:
    """Writer that builds a dataset in a temporary folder and renames it when complete.

    An interrupted write can be resumed: finished shards are not rewritten.

    Args:
      folder: output folder; must not exist.
      sources: checksums by source name; shards of other sources are deleted.
    """

    def __init__(self, folder: Path, sources: dict[str, dict[str, Any]]) -> None:
        self._folder = folder
        self._partial = folder.with_name(folder.name + ".partial")
        self._sources = sources
        self._splits: dict[str, dict[str, dict[str, int]]] = {}
        record = self._partial / "sources.json"
        with contextlib.suppress(OSError, ValueError):
            if json.loads(record.read_bytes()) != sources:
                shutil.rmtree(self._partial)
        with _explained(folder.parent):
            self._partial.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(sources))
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
        """Write a split in shards.

        Args:
          split: name of the split.
          rows: expected number of records.
          records: function ``start -> records from start``.
          shard: records per file.

        Yields:
          Number of records written so far, after every shard.

        Raises:
          InputError: the number of records is not ``rows``.
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

    def finish(self, classes: Sequence[str]) -> Path:
        """Write the index and rename the temporary folder to the output folder."""
        index = {
            "format": index_lib.FORMAT,
            "name": self._folder.name,
            "features": IMAGE_FEATURES,
            "splits": self._splits,
            "rows": {
                split: sum(shard["rows"] for shard in files.values())
                for split, files in self._splits.items()
            },
            "sources": self._sources,
            "classes": list(classes),
        }
        with _explained(self._folder.parent):
            text = json.dumps(index, indent=1) + "\n"
            (self._partial / "index.json").write_text(text)
            (self._partial / "sources.json").unlink()
            publish(self._partial, self._folder)
        return self._folder


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--data_dir: cannot write in {folder}: {error}") from error


def _write_shard(path: Path, source: Iterator[bytes], count: int, wanted: str) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(path.name + ".tmp")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    try:
        for done in range(count):
            found = next(source, None)
            if found is None:
                raise InputError(f"{wanted}, found fewer: {path.name} ends at {done}")
            writer.write(found)
    finally:
        writer.close()
    publish(temporary, path)
