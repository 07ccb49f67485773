"""Subword vocabularies: byte-pair encoding, trained or loaded, stored in the workdir.

Text is normalized to NFC with single spaces. A word's first subword begins with U+2581,
punctuation is isolated, and decoding restores the text. BART vocabularies are
byte-level and have BART's special tokens. Training depends on the text alone. A run's
vocabularies are written once, atomically, before its first step:

    WORKDIR/vocabulary/index.json      format, sizes and checksums
    WORKDIR/vocabulary/joint.json      or source.json and target.json
"""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rdrop_jax.data import index as index_lib
from rdrop_jax.errors import InputError, rust_explained
from rdrop_jax.files.disk import new_folder
from rdrop_jax.files.lines import clean

FOLDER = "vocabulary"
PAD, EOS, UNK = 0, 1, 2
SPECIAL = ("<pad>", "</s>", "<unk>")
BOS = "<s>"
SPACE = "\u2581"


class Special(NamedTuple):
    """Ids of the special tokens.

    Attributes:
      pad: padding.
      eos: end of a text.
      unk: unknown token.
      start: first decoder input.
      bos: first token of every text; None if the vocabulary has none.
    """

    pad: int = PAD
    eos: int = EOS
    unk: int = UNK
    start: int = EOS
    bos: int | None = None


PLAIN = Special()


class Vocabulary:
    """Mapping from text to ids and back.

    Ids 0, 1 and 2 are padding, end of sentence and unknown. If the vocabulary has
    ``<s>``, as BART's does, every text begins with it and special ids may be any.

    Args:
      name: "joint", "source" or "target".
      text: tokenizer JSON in the format of Hugging Face's `tokenizers`.

    Raises:
      InputError: not a tokenizer file, or unexpected special ids.
    """

    def __init__(self, name: str, text: str) -> None:
        from tokenizers import Tokenizer

        self.name, self.text = name, text
        with rust_explained(f"{name}: not a tokenizer file"):
            self._tokenizer = Tokenizer.from_str(text)
        pad, eos, unk = (self._tokenizer.token_to_id(token) for token in SPECIAL)
        bos = self._tokenizer.token_to_id(BOS)
        if bos is None and (pad, eos, unk) != (PAD, EOS, UNK):
            raise InputError(
                f"{name}: expected ids 0, 1 and 2 for {', '.join(SPECIAL)}, found "
                f"{(pad, eos, unk)}"
            )
        if pad is None or eos is None or unk is None:
            raise InputError(
                f"{name}: expected {', '.join(SPECIAL)} in addition to {BOS}, found "
                f"{(pad, eos, unk)}"
            )
        self.special = Special(pad, eos, unk, eos, bos)
        self._before = [] if bos is None else [bos]
        self._tokenizer.encode_special_tokens = True  # "</s>" in a text is text
        subwords = self._tokenizer.get_vocab().keys() - set(SPECIAL)
        self._characters = set("".join(subwords))

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode each text, with ``<s>`` if present, without an end of sentence."""
        cleaned = [clean(text) for text in texts]
        encoded = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return [[*self._before, *item.ids] for item in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, without special tokens."""
        return str(self._tokenizer.decode(list(ids))).strip()

    def unknown(self, text: str) -> str:
        """Return the distinct characters of a text that no subword contains."""
        normal = unicodedata.normalize("NFC", text)
        return "".join(
            dict.fromkeys(
                c for c in normal if not c.isspace() and c not in self._characters
            )
        )

    @property
    def sha256(self) -> str:
        """SHA-256 checksum of the tokenizer."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Vocabularies:
    """Source and target vocabularies; the same object if they are joint."""

    source: Vocabulary
    target: Vocabulary

    @property
    def joint(self) -> bool:
        """True if source and target share one vocabulary."""
        return self.source.name == "joint"

    def files(self) -> dict[str, Vocabulary]:
        """Map file names to vocabularies."""
        each = {v.name: v for v in (self.source, self.target)}
        return {f"{name}.json": v for name, v in each.items()}

    def provenance(self) -> dict[str, str]:
        """Return checksums for result.json."""
        return {f"{FOLDER}/{name}": v.sha256 for name, v in self.files().items()}


def _alphabet(texts: Collection[str], size: int) -> list[str]:
    """Return the most frequent characters; unlike the library, break ties by order."""
    counts: Counter[str] = Counter(SPACE)
    for text in texts:
        counts.update(unicodedata.normalize("NFC", text))
    known = (c for c in counts if not c.isspace())
    return sorted(known, key=lambda c: (c != SPACE, -counts[c], c))[:size]


def train(name: str, texts: Collection[str], size: int) -> Vocabulary:
    """Train a byte-pair encoding.

    Args:
      name: name of the vocabulary.
      texts: training texts.
      size: maximum number of subwords, including characters and the three special
        tokens. At most half are characters; rarer characters are unknown.

    Returns:
      The vocabulary; smaller if the texts have no more pairs to merge.
    """
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    texts = [clean(text) for text in texts]
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(rf"[\s{SPACE}]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    alphabet = _alphabet(texts, size // 2)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Vocabulary(name, tokenizer.to_str())


def save(vocabularies: Vocabularies, workdir: Path) -> None:
    """Write vocabularies to a temporary folder, then rename it into ``workdir``."""
    files = vocabularies.files()
    index = {
        "format": index_lib.FORMAT,
        "files": {
            name: {"size": len(v), "sha256": v.sha256} for name, v in files.items()
        },
    }
    with new_folder(workdir / FOLDER) as partial:
        for name, vocabulary in files.items():
            (partial / name).write_text(vocabulary.text, "utf-8")
        (partial / "index.json").write_text(json.dumps(index, indent=1), "utf-8")


def load(
    workdir: Path, make: Callable[[str, str], Vocabulary] = Vocabulary
) -> Vocabularies:
    """Load the vocabularies of a run.

    Args:
      workdir: folder of the run.
      make: builds a vocabulary from its name and the content of its file.

    Raises:
      InputError: missing, or not the vocabularies that the run was started with.
    """
    folder = workdir / FOLDER
    if not (folder / "index.json").is_file():
        raise InputError(f"{folder}: expected the vocabulary of a run, found none")
    sums: dict[str, str] = {}

    def collect(index: dict[str, Any]) -> dict[str, int]:
        sums.update((name, file["sha256"]) for name, file in index["files"].items())
        return {}

    index_lib.read(folder, collect, "Restore it from a backup.")
    found = {}
    for name, sha256 in sums.items():
        path = folder / Path(name).name
        there = index_lib.size_of(path) is not None
        content = path.read_bytes() if there else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(
                f"{path}: expected the vocabulary that the run was started with, "
                f"sha256 {sha256}, found "
                f"{'another file' if content else 'no such file'}. Restore it: the "
                "checkpoints depend on it."
            )
        found[path.stem] = make(path.stem, content.decode())
    missing = {"source", "target"} - found.keys()
    if "joint" not in found and missing:
        raise InputError(f"{folder}: expected joint.json, found {sorted(found)}")
    joint = found.get("joint")
    return Vocabularies(joint or found["source"], joint or found["target"])
