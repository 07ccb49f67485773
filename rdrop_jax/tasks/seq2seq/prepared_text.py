"""Prepared parallel corpora: gzipped text and an index, written atomically.

DATA_DIR/NAME/index.json
DATA_DIR/NAME/train.de.gz, train.en.gz, validation.de.gz, ..., test.en.gz
"""

import contextlib
import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rdrop_jax.data import index as index_lib
from rdrop_jax.files import checksums
from rdrop_jax.files.disk import publish

NAMES = (
    "iwslt14_de_en",
    "iwslt14_es_en",
    "iwslt17_fr_en",
    "iwslt17_zh_en",
    "wmt14_en_de",
    "wmt14_en_fr",
)


class Writer:
    """Writer that builds a corpus in a temporary folder and renames it when complete.

    Args:
      folder: output folder.
      languages: source and target language.
    """

    def __init__(self, folder: Path, languages: tuple[str, str]) -> None:
        self._folder, self._languages = folder, languages
        self._partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._rows: dict[str, int] = {}

    def write(self, split: str, pairs: Iterable[tuple[str, str]]) -> int:
        """Write a split and return its number of pairs."""
        with self.open(split) as add:
            for pair in pairs:
                add(*pair)
        return self._rows[split]

    @contextlib.contextmanager
    def open(self, split: str) -> Iterator[Any]:
        """Open a split; yields a function that adds one pair."""
        self._rows[split] = 0
        with contextlib.ExitStack() as stack:
            files = []
            for language in self._languages:
                path = self._partial / f"{split}.{language}.gz"
                raw = stack.enter_context(path.open("wb"))
                # Omit name and time, so that equal text gives equal files.
                zipped = gzip.GzipFile("", "wb", 6, raw, mtime=0)
                files.append(stack.enter_context(zipped))

            def add(*texts: str) -> None:
                self._rows[split] += 1
                for file, text in zip(files, texts, strict=True):
                    file.write(f"{text}\n".encode())

            yield add

    def finish(self, notes: Mapping[str, Any]) -> Path:
        """Write the index and rename the temporary folder to the output folder."""
        files = {}
        for path in sorted(self._partial.iterdir()):
            size = path.stat().st_size
            files[path.name] = {"bytes": size, "sha256": checksums.sha256(path)}
        index = {
            "format": index_lib.FORMAT,
            "name": self._folder.name,
            "pairs": self._rows,
            "files": files,
            **notes,
        }
        (self._partial / "index.json").write_text(json.dumps(index, indent=1))
        publish(self._partial, self._folder)
        return self._folder
