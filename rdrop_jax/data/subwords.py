"""Subword tokenizers trained on the data, and encoding of texts as arrays of ids.

The library `tokenizers` provides WordPiece (BERT) and byte-level BPE (RoBERTa). A pair
that is too long is truncated in its longer text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from rdrop_jax.data.tokenizer_files import BYTES, WORDPIECE, as_bert, as_roberta
from rdrop_jax.errors import InputError, rust_explained
from rdrop_jax.files.disk import write_text
from rdrop_jax.files.lines import clean


def train_wordpiece(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer; deterministic given the texts.

    Args:
      texts: training texts.
      vocab_size: maximum number of subwords, including special tokens.

    Returns:
      The tokenizer, with BERT's templates for single texts and pairs.
    """
    texts = [clean(text) for text in texts]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters: set[str] = set()
    for text in texts:
        characters.update(tokenizer.normalizer.normalize_str(text))
    inner = [f"##{c}" for c in sorted(characters) if not c.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers inner characters in random order and breaks ties by these
        # numbers.
        special_tokens=[*WORDPIECE, *inner],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    learned = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    return as_bert(learned, normalizers.BertNormalizer(lowercase=True))


def train_bytes(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer; deterministic given the texts.

    Args:
      texts: training texts.
      vocab_size: maximum number of subwords, including 256 bytes and special tokens.

    Returns:
      The tokenizer, with the special tokens and the template of RoBERTa and BART.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(BYTES),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([clean(text) for text in texts], trainer)
    return as_roberta(tokenizer)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write tokenizer.json atomically."""
    write_text(path, tokenizer.to_str(pretty=True))


def check_fits(
    tokenizer: Tokenizer, *, vocab_size: int, pad_id: int, exact: bool
) -> None:
    """Check that the ids of a tokenizer match those of the model.

    Args:
      tokenizer: tokenizer of the texts.
      vocab_size: rows of the model's embedding table.
      pad_id: padding id of the model.
      exact: True if the table is pretrained; it may then exceed the tokenizer's
        vocabulary only by rounding up: fewer than 128 rows, or 0.4% of them.

    Raises:
      InputError: ids out of range, a vocabulary too small, or another padding id.
    """
    size = 1 + max(tokenizer.get_vocab().values(), default=0)
    spare = max(128, vocab_size // 250)
    if size > vocab_size or (exact and vocab_size - size >= spare):
        raise InputError(
            f"data.tokenizer: expected ids for the {vocab_size} tokens of "
            f"model.vocab_size, found a tokenizer of {size}. Use the model's tokenizer."
        )
    names = (WORDPIECE[0], BYTES[1])
    found = [tokenizer.token_to_id(name) for name in names]
    if pad_id not in found:
        remedy = "Use the model's tokenizer"
        if own := [number for number in found if number is not None and not exact]:
            remedy = f"Set model.pad_id={own[0]}, or use the model's tokenizer"
        raise InputError(
            f"data.tokenizer: expected {' or '.join(names)} at id {pad_id}, the "
            f"model's padding id, found {found}. {remedy}."
        )


@dataclass(frozen=True)
class EncodedTexts:
    """Encoded texts, concatenated.

    Attributes:
      ids: ids of all texts.
      types: 0 in the first text of a pair, 1 in the second.
      starts: start offset of each text, and the end of the last one.
      ends: end of each token in its text, 0 for special tokens; None unless asked for.
    """

    ids: Int[np.ndarray, " tokens"]
    types: UInt8[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " rows_and_one"]
    ends: Int[np.ndarray, " tokens"] | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int[np.ndarray, " rows"]:
        """Number of tokens of each row, including special tokens."""
        return np.diff(self.starts)

    def first_tokens(
        self, words: Sequence[Sequence[tuple[int, int]]]
    ) -> Int[np.ndarray, " words"]:
        """Find the first token of each word.

        Args:
          words: start and end of the words of each text.

        Returns:
          Position in ``ids`` of the first token of each word of all texts; -1 for a
          word without tokens, such as one after the maximum length.
        """
        assert self.ends is not None, "encode with ends=True"
        found = [np.zeros(0, np.int64)]
        for row, places in enumerate(words):
            start = self.starts[row]
            last = self.ends[start : self.starts[row + 1]] - 1
            begins, ends = np.asarray(places, np.int64).reshape(-1, 2).T
            word = np.searchsorted(begins, last, side="right") - 1
            # Special tokens have no end; a token of white space is in no word.
            inside = np.flatnonzero((word >= 0) & (last < ends[word]))
            seen, at = np.unique(word[inside], return_index=True)
            first = np.full(len(places), -1, np.int64)
            first[seen] = start + inside[at]
            found.append(first)
        return np.concatenate(found)

    def batch(
        self,
        rows: Sequence[int] | Int[np.ndarray, " rows"],
        time: int,
        pad_id: int,
        **more: Shaped[np.ndarray, " tokens"],
    ) -> dict[str, np.ndarray]:
        """Build a batch of some rows, padded to one length.

        Args:
          rows: row numbers.
          time: padded length; no row is longer.
          pad_id: id of padding.
          **more: additional values of each token of all texts.

        Returns:
          ``tokens``, ``types`` and the additional arrays [rows, time], ``length``
          [rows].
        """
        tokens = np.full((len(rows), time), pad_id, np.int32)
        types = np.zeros((len(rows), time), np.int32)
        others = {k: np.zeros((len(rows), time), x.dtype) for k, x in more.items()}
        for i, row in enumerate(rows):
            part = slice(self.starts[row], self.starts[row + 1])
            count = part.stop - part.start
            tokens[i, :count], types[i, :count] = self.ids[part], self.types[part]
            for name, x in others.items():
                x[i, :count] = more[name][part]
        length = self.lengths[np.asarray(rows, np.int64)].astype(np.int32)
        return {"tokens": tokens, "types": types, "length": length} | others


def encode(
    tokenizer: Tokenizer,
    first: Sequence[str],
    second: Sequence[str] | None,
    max_length: int,
    *,
    ends: bool = False,
) -> EncodedTexts:
    """Encode texts or pairs, with special tokens.

    Args:
      tokenizer: tokenizer returned by `tokenizer_files.load`.
      first: single texts, or first texts of pairs.
      second: second texts of pairs; None for single texts.
      max_length: maximum number of tokens; a pair is truncated in its longer text.
      ends: True also returns the end of each token in its text.

    Returns:
      The encoded texts.
    """
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    pairs: list[Any] = [clean(text) for text in first]
    if second is not None:
        pairs = list(zip(pairs, map(clean, second), strict=True))
    ids, types = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)]
    lengths, offsets = [], [np.zeros(0, np.int32)]
    # Encode in chunks to bound the memory of the library's objects.
    for start in range(0, len(pairs), 8192):
        with rust_explained(
            "data.tokenizer: expected a tokenizer that encodes every text, got"
        ):
            encoded = tokenizer.encode_batch(pairs[start : start + 8192])
        for item in encoded:
            ids.append(np.asarray(item.ids, np.int32))
            types.append(np.asarray(item.type_ids, np.uint8))
            lengths.append(len(item.ids))
            if ends:
                offsets.append(np.asarray([end for _, end in item.offsets], np.int32))
    starts = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))])
    return EncodedTexts(
        np.concatenate(ids),
        np.concatenate(types),
        starts,
        np.concatenate(offsets) if ends else None,
    )
