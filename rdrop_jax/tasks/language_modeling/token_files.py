"""Tokenized text in memory-mapped files with its vocabulary, written atomically.

FOLDER/index.json        format, sizes, checksums
FOLDER/vocabulary.json
FOLDER/train.bin, validation.bin, test.bin    int32, little-endian
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rdrop_jax.data import index as index_lib
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import new_folder
from rdrop_jax.tasks.language_modeling import vocabularies
from rdrop_jax.tasks.language_modeling.vocabularies import LineVocabulary

_SIZES = ("tokens", "words", "characters")
_CHUNK = 10_000


@dataclass(frozen=True)
class Split:
    """Tokenized text of one split.

    Attributes:
      ids: ids of the full text, including end-of-line tokens.
      words: number of words, counting the end of each line as one.
      characters: number of characters that the ids encode, counting the end of each
        line as one.
      lines: text of a held-out split; None if it is not kept.
    """

    ids: Int[np.ndarray, " tokens"]
    words: int
    characters: int
    lines: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"Split({len(self.ids)} tokens)"


@dataclass(frozen=True)
class Corpus:
    """Tokenized text with its vocabulary.

    Attributes:
      vocabulary: vocabulary of the ids.
      splits: splits by name.
      provenance: checksums, and the commit of a dataset of the Hub, for result.json.
    """

    vocabulary: LineVocabulary
    splits: Mapping[str, Split]
    provenance: dict[str, str]


def encode(
    vocabulary: LineVocabulary, lines: Iterable[str], origin: str, *, keep: bool = False
) -> Split:
    """Encode a text.

    Args:
      vocabulary: vocabulary of the ids.
      lines: lines of the text.
      origin: name of the text in error messages.
      keep: also keep the lines; scoring needs the characters of unknown words.

    Returns:
      The encoded split.

    Raises:
      InputError: fewer than two tokens, or an unknown token and a vocabulary without
        <unk>.
    """
    parts, words, characters = [np.zeros(0, np.int32)], 0, 0
    waiting: list[str] = []
    kept: list[str] = []

    def flush() -> None:
        try:
            ids = vocabulary.encode(waiting)
        except InputError as error:
            raise InputError(f"{origin}: {error}") from error
        flat = [i for line in ids for i in (*line, vocabulary.end)]
        parts.append(np.asarray(flat, np.int32))
        waiting.clear()

    for line in lines:
        waiting.append(line)
        if keep:
            kept.append(line)
        words += len(line.split()) + 1
        characters += vocabulary.characters(line) + 1
        if len(waiting) == _CHUNK:
            flush()
    flush()
    ids = np.concatenate(parts)
    if len(ids) < 2:
        raise InputError(f"{origin}: expected at least two tokens, found {len(ids)}")
    return Split(ids, words, characters, tuple(kept) if keep else None)


def make(vocabulary: LineVocabulary, texts: Mapping[str, Iterable[str]]) -> Corpus:
    """Build a corpus in memory.

    Args:
      vocabulary: vocabulary of all splits.
      texts: lines by split.

    Returns:
      The corpus.
    """
    splits = {
        name: encode(vocabulary, text, name, keep=name in SPLITS[1:])
        for name, text in texts.items()
    }
    return Corpus(vocabulary, splits, _provenance(vocabulary, splits))


def _provenance(
    vocabulary: LineVocabulary, splits: Mapping[str, Split]
) -> dict[str, str]:
    found = {"vocabulary": hashlib.sha256(vocabulary.dump().encode()).hexdigest()}
    for name, split in splits.items():
        found[name] = hashlib.sha256(_bytes(split.ids)).hexdigest()
    return found


def _bytes(ids: np.ndarray) -> memoryview:
    return np.ascontiguousarray(ids, "<i4").view(np.uint8).data


def save(corpus: Corpus, folder: Path, *, texts: bool = True) -> Path:
    """Write a corpus to a temporary folder, then rename it to ``folder``.

    Args:
      corpus: corpus to write.
      folder: output folder; replaced if it exists.
      texts: False omits ids and lines, for a run whose text is stored elsewhere.

    Returns:
      The folder.
    """
    index = {
        "format": index_lib.FORMAT,
        "sha256": dict(corpus.provenance),
        "splits": {
            name: {
                "tokens": len(split.ids),
                "words": split.words,
                "characters": split.characters,
                "length": sum(len(line) + 1 for line in split.lines or ()),
            }
            for name, split in corpus.splits.items()
        },
    }
    with new_folder(folder) as partial:
        (partial / "vocabulary.json").write_text(corpus.vocabulary.dump(), "utf-8")
        for name, split in corpus.splits.items() if texts else ():
            (partial / f"{name}.bin").write_bytes(_bytes(split.ids))
            if split.lines is not None:
                content = "".join(f"{line}\n" for line in split.lines)
                (partial / f"{name}.txt").write_bytes(content.encode())
        (partial / "index.json").write_text(json.dumps(index, indent=1))
    return folder


def load(folder: Path, texts: Path | None = None) -> Corpus:
    """Load a corpus whose ids are read from disk on demand.

    Args:
      folder: folder written by `save`.
      texts: folder of the ids, if different.

    Returns:
      The corpus, without splits whose files are missing.

    Raises:
      InputError: the folder is missing, the vocabulary differs from the index, or a
        file is truncated.
    """
    index = read_index(folder)
    path = folder / "vocabulary.json"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != index["sha256"]["vocabulary"]:
        raise InputError(
            f"{path}: expected the vocabulary of {folder / 'index.json'}, found "
            f"{'another file' if content else 'no such file'}. Restore it."
        )
    splits = {}
    for name, entry in index["splits"].items():
        file = (texts or folder) / f"{name}.bin"
        if not file.is_file():
            continue
        if file.stat().st_size != 4 * entry["tokens"]:
            raise InputError(
                f"{file}: expected {4 * entry['tokens']} bytes, found "
                f"{file.stat().st_size}. Prepare the text again."
            )
        ids = np.memmap(file, "<i4", "r")
        characters = entry["characters"]
        lines = _lines(file, entry.get("length", characters))
        splits[name] = Split(ids, entry["words"], characters, lines)
    vocabulary = vocabularies.parse(content.decode())
    return Corpus(vocabulary, splits, index["sha256"])


def _lines(file: Path, length: int) -> tuple[str, ...] | None:
    """Read the text stored with the ids of a split; None if absent, as in older runs.

    Raises:
      InputError: not UTF-8, or a length that differs from the index.
    """
    path = file.with_suffix(".txt")
    if not path.is_file():
        return None
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, found {error}") from error
    if len(text) != length:
        raise InputError(
            f"{path}: expected {length} characters, found {len(text)}. Prepare the "
            "text again"
        )
    return tuple(text.split("\n")[:-1])


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a corpus.

    Raises:
      InputError: missing, or not a valid index.
    """
    return index_lib.read(folder, _check_index)


def _check_index(index: Mapping[str, Any]) -> dict[str, int]:
    splits = index["splits"]
    sizes = [split[name] for split in splits.values() for name in _SIZES]
    if not (
        isinstance(index["sha256"]["vocabulary"], str)
        and splits.keys() <= set(SPLITS)
        and all(type(size) is int for size in sizes)
    ):
        raise TypeError("expected sha256 and splits with sizes")
    return {}  # a run may have its ids in another folder
