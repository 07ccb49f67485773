"""Vocabularies of running text: words, characters or byte pairs. Needs no jax.

A line is encoded as its words, characters or subwords, followed by an end token. A
vocabulary depends only on the text that it was learned from.
"""

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rdrop_jax.data import tokenizers
from rdrop_jax.errors import InputError
from rdrop_jax.files.lines import clean
from rdrop_jax.files.lines import read as read_lines

KINDS = ("words", "characters", "bpe")
END, UNKNOWN = "<eos>", "<unk>"


@runtime_checkable
class LineVocabulary(Protocol):
    """Mapping from text to ids and back.

    Attributes:
      end: id of the end of a line; also precedes the first token of a text.
      unknown: id of unknown tokens; None if the vocabulary has none.
      pad: id that no text has; None if all ids occur.
    """

    end: int
    unknown: int | None
    pad: int | None

    def __len__(self) -> int: ...

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode each line, without its end token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, with a newline for each end token."""
        ...

    def characters(self, line: str) -> int:
        """Count the characters that the ids of a line encode, without its end."""
        ...

    def dump(self) -> str:
        """Serialize the vocabulary for `parse`."""
        ...


class Tokens:
    """Vocabulary of words or characters.

    Args:
      kind: "words" or "characters".
      tokens: tokens by id; "<eos>" ends a line of words, a newline one of characters.

    Raises:
      InputError: a duplicate token, or no end token.
    """

    pad: int | None = None

    def __init__(self, kind: str, tokens: Sequence[str]) -> None:
        self.kind, self._tokens = kind, list(tokens)
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        if len(self._ids) < len(self._tokens):
            twice, _ = Counter(self._tokens).most_common(1)[0]
            lines = [i + 1 for i, t in enumerate(self._tokens) if t == twice]
            raise InputError(
                f"data.vocabulary: expected every token once, found {twice!r} in "
                f"lines {lines[0]} and {lines[1]}"
            )
        end = END if kind == "words" else "\n"
        if end not in self._ids:
            raise InputError(f"data.vocabulary: expected {end!r}, found none")
        self.end = self._ids[end]
        self.unknown = self._ids.get(UNKNOWN)

    def __len__(self) -> int:
        return len(self._tokens)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode each line, without its end token.

        Raises:
          InputError: an unknown token, and the vocabulary has no <unk>.
        """
        found = []
        for line in lines:
            tokens = line.split() if self.kind == "words" else line
            ids = [self._ids.get(token, self.unknown) for token in tokens]
            if None in ids:
                token = tokens[ids.index(None)]
                raise InputError(
                    f"expected {self.kind} of the vocabulary, which has no "
                    f"{UNKNOWN}, found {token!r} in {line[:60]!r}"
                )
            found.append([i for i in ids if i is not None])
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to words joined by spaces, or to characters."""
        tokens = [self._tokens[i] for i in ids]
        if self.kind == "characters":
            return "".join(tokens)
        lines = itertools.groupby(tokens, lambda token: token == END)
        parts = ("\n" * len(list(run)) if end else " ".join(run) for end, run in lines)
        return "".join(parts)

    def characters(self, line: str) -> int:
        """Count characters; words encode no spaces but one between two words."""
        return len(line if self.kind == "characters" else " ".join(line.split()))

    def dump(self) -> str:
        """Serialize the vocabulary to JSON."""
        value = {"kind": self.kind, "tokens": self._tokens}
        return json.dumps(value, ensure_ascii=False)


class Subwords:
    """Byte-pair vocabulary trained by `rdrop_jax.data.tokenizers`.

    Args:
      vocabulary: the subword vocabulary.
    """

    end = tokenizers.EOS
    unknown: int | None = tokenizers.UNK
    pad: int | None = tokenizers.PAD

    def __init__(self, vocabulary: tokenizers.Vocabulary) -> None:
        self._subwords = vocabulary

    def __len__(self) -> int:
        return len(self._subwords)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Encode each line, without its end token."""
        return self._subwords.encode(list(lines))

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to lines of text."""
        lines: list[list[int]] = [[]]
        for i in ids:
            if i == self.end:
                lines.append([])
            else:
                lines[-1].append(i)
        return "\n".join(self._subwords.decode(line) for line in lines)

    def characters(self, line: str) -> int:
        """Count characters; subwords encode NFC, with one space between two words."""
        normal = unicodedata.normalize("NFC", line.replace(tokenizers.SPACE, " "))
        return len(" ".join(normal.split()))

    def dump(self) -> str:
        """Serialize the vocabulary to JSON."""
        return json.dumps({"kind": "bpe", "tokenizer": self._subwords.text})


def parse(text: str) -> LineVocabulary:
    """Parse a vocabulary that `LineVocabulary.dump` serialized.

    Raises:
      InputError: not a serialized vocabulary.
    """
    try:
        value = json.loads(text)
        kind = value["kind"]
        if kind == "bpe":
            return Subwords(tokenizers.Vocabulary("bpe", value["tokenizer"]))
        return Tokens(kind, value["tokens"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"expected a vocabulary, found {text[:40]!r}") from error


def learn(kind: str, lines: Iterable[str], size: int, min_count: int) -> LineVocabulary:
    """Learn the vocabulary of a text, most frequent tokens first.

    Args:
      kind: one of `KINDS`.
      lines: the text.
      size: maximum number of tokens; 0 is unlimited and invalid for byte pairs.
      min_count: minimum count of a known token; ignored for byte pairs.

    Returns:
      The vocabulary. Those of words and characters have an unknown token.
    """
    lines = map(clean, lines)
    if kind == "bpe":
        return Subwords(tokenizers.train("bpe", list(lines), size))
    counts: Counter[str] = Counter()
    end = END if kind == "words" else "\n"
    for line in lines:
        counts.update(line.split() if kind == "words" else line)
        counts[end] += 1
    counts.setdefault(UNKNOWN, 0)
    special = {end, UNKNOWN}
    order = sorted(counts, key=lambda token: (-counts[token], token))
    common = [t for t in order if counts[t] >= min_count and t not in special]
    if size:
        common = common[: max(size - len(special), 0)]
    known = special.union(common)
    counts[UNKNOWN] += sum(counts[token] for token in order if token not in known)
    # Sort again: <unk> may be frequent, and adaptive softmax depends on the order.
    return Tokens(kind, sorted(known, key=lambda token: (-counts[token], token)))


def read(path: Path) -> LineVocabulary:
    """Read a vocabulary of words from a text file with one word per line.

    Raises:
      InputError: the file is missing, or has a duplicate word.
    """
    if not path.is_file():
        raise InputError(f"data.vocabulary: no file {str(path)!r}")
    words = [line.strip() for line in read_lines(path)]
    words = [word for word in words if word]
    return Tokens("words", words if END in words else [*words, END])
