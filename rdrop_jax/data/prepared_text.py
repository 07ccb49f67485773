"""Prepared parallel corpora: gzipped text and an index, written whole or not at all.

DATA_DIR/NAME/index.json
DATA_DIR/NAME/train.de.gz, train.en.gz, validation.de.gz, ..., test.en.gz
"""

import contextlib
import gzip
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError

FORMAT = 1
NAMES = (
    "iwslt14_de_en",
    "iwslt14_es_en",
    "iwslt17_fr_en",
    "iwslt17_zh_en",
    "wmt14_en_de",
    "wmt14_en_fr",
)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a prepared corpus.

    Raises:
      InputError: there is none, or one of another format, or a file is not there.
    """
    path = folder / "index.json"
    try:
        index = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the index of a prepared corpus, found none: {error}"
        ) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT}; prepare it again")
    for name, entry in index["files"].items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != entry["bytes"]:
            raise InputError(
                f"{folder / name}: expected {entry['bytes']} bytes, as {path.name} "
                f"says, found {size or 'no such file'}; prepare it again"
            )
    return index


class Writer:
    """Writes a corpus beside its place and moves it there when it is whole.

    Args:
      folder: where it will stand.
      languages: of the two sides.
    """

    def __init__(self, folder: Path, languages: tuple[str, str]) -> None:
        self._folder, self._languages = folder, languages
        self._partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._rows: dict[str, int] = {}

    def write(self, split: str, pairs: Iterable[tuple[str, str]]) -> int:
        """Writes a split; returns how many pairs it has."""
        with self.open(split) as add:
            for pair in pairs:
                add(*pair)
        return self._rows[split]

    @contextlib.contextmanager
    def open(self, split: str) -> Iterator[Any]:
        """A function that adds one pair to a split."""
        self._rows[split] = 0
        with contextlib.ExitStack() as stack:
            files = []
            for language in self._languages:
                path = self._partial / f"{split}.{language}.gz"
                raw = stack.enter_context(path.open("wb"))
                # No name and no time inside: the same text gives the same file.
                zipped = gzip.GzipFile("", "wb", 6, raw, mtime=0)
                files.append(stack.enter_context(zipped))

            def add(*texts: str) -> None:
                self._rows[split] += 1
                for file, text in zip(files, texts, strict=True):
                    file.write(f"{text}\n".encode())

            yield add

    def finish(self, notes: Mapping[str, Any]) -> Path:
        """Writes the index and moves the corpus to its place."""
        files = {}
        for path in sorted(self._partial.iterdir()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
        index = {
            "format": FORMAT,
            "name": self._folder.name,
            "pairs": self._rows,
            "files": files,
            **notes,
        }
        (self._partial / "index.json").write_text(json.dumps(index, indent=1))
        self._partial.rename(self._folder)
        return self._folder
