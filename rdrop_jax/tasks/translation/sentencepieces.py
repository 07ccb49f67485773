"""Vocabularies of Marian models (opus-mt): SentencePiece, with ids of vocab.json."""

import base64
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rdrop_jax import extras
from rdrop_jax.data.tokenizers import SPECIAL, Special, Vocabularies, Vocabulary
from rdrop_jax.errors import InputError
from rdrop_jax.files import lfs
from rdrop_jax.files.disk import read_json
from rdrop_jax.files.lines import clean

SIDES = ("source", "target")
# Target language at the start of a source of a multilingual model, such as >>fr<<.
_LANGUAGE = re.compile(">>.*?<<", re.DOTALL)


class MarianVocabulary(Vocabulary):
    """Subwords of one language, with ids that both languages share.

    Args:
      name: "source" or "target".
      text: JSON with ``vocab``, the content of vocab.json, and ``model``, the
        SentencePiece model in base64.

    Raises:
      InputError: the package sentencepiece is not installed, the model is corrupt, or
        vocab.json lacks a special token.
    """

    def __init__(self, name: str, text: str) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError as error:
            raise InputError(f"init_from: {extras.missing('sentencepiece')}") from error
        self.name, self.text = name, text
        stored = json.loads(text)
        self.ids: dict[str, int] = stored["vocab"]
        self.model = base64.b64decode(stored["model"])
        self._pieces = SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(self.model)
        except RuntimeError as error:
            raise InputError(f"{name}.spm: not a SentencePiece model") from error
        missing = [token for token in SPECIAL if token not in self.ids]
        if missing:
            raise InputError(
                f"vocab.json: expected {', '.join(SPECIAL)}, as Marian's, found no "
                f"{', '.join(missing)}"
            )
        pad, eos, unk = (self.ids[token] for token in SPECIAL)
        self.special = Special(pad, eos, unk, start=pad)
        self._tokens = {i: token for token, i in self.ids.items()}
        self._characters = set("".join(self.ids.keys() - set(SPECIAL)))

    def __len__(self) -> int:
        return 1 + max(self._tokens)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode each text, without an end of sentence."""
        return [self._encoded(clean(text)) for text in texts]

    def _encoded(self, text: str) -> list[int]:
        found = _LANGUAGE.match(text)
        tokens = [found[0]] if found else []
        tokens += self._pieces.encode(text[found.end() if found else 0 :], out_type=str)
        unk = self.special.unk
        # "</s>" in a text is text.
        return [unk if t in SPECIAL else self.ids.get(t, unk) for t in tokens]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, without special tokens."""
        tokens = [self._tokens.get(int(i), "") for i in ids]
        shown = [token for token in tokens if token not in SPECIAL]
        return str(self._pieces.decode_pieces(shown)).replace("\u2581", " ").strip()


def is_marian(vocabularies: Vocabularies) -> bool:
    """Return True for vocabularies that were read by `read`."""
    return isinstance(vocabularies.target, MarianVocabulary)


def from_text(name: str, text: str) -> Vocabulary:
    """Build a vocabulary of a workdir, Marian's or one that was trained."""
    marian = "model" in (stored := json.loads(text)) and isinstance(
        stored["model"], str
    )
    return MarianVocabulary(name, text) if marian else Vocabulary(name, text)


def read(folder: Path) -> Vocabularies:
    """Read source.spm, target.spm and vocab.json.

    Raises:
      InputError: a file is missing or corrupt.
    """
    names = ("vocab.json", *(f"{side}.spm" for side in SIDES))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"init_from: {folder}: expected {', '.join(names)} of a Marian model, "
            f"found no {', '.join(missing)}"
        )
    for name in names:
        lfs.check_not_pointer(folder / name, "init_from")
    vocab = read_json(folder / "vocab.json", "init_from")
    whole = all(type(i) is int and i >= 0 for i in vocab.values())
    if not whole or len(set(vocab.values())) < len(vocab):
        raise InputError(
            f"init_from: {folder / 'vocab.json'}: expected an id for each token, all "
            "different, found others"
        )

    def side(name: str) -> Vocabulary:
        model = (folder / f"{name}.spm").read_bytes()
        stored = {"vocab": vocab, "model": base64.b64encode(model).decode()}
        return MarianVocabulary(name, json.dumps(stored, ensure_ascii=False))

    return Vocabularies(*map(side, SIDES))


def write(vocabularies: Vocabularies, folder: Path) -> dict[str, Any]:
    """Write the files of `read`; return the content of vocab.json."""
    vocab: dict[str, Any] = {}
    for vocabulary in (vocabularies.source, vocabularies.target):
        assert isinstance(vocabulary, MarianVocabulary)
        (folder / f"{vocabulary.name}.spm").write_bytes(vocabulary.model)
        vocab = vocabulary.ids
    return vocab
