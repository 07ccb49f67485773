"""Running text to ids and back: words, characters or byte pairs. Needs no jax.

A line is its words, its characters or its pieces, and an end. What a vocabulary says of
a text is a function of the text it was made from alone.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from rdrop_jax.data import tokenizers
from rdrop_jax.data.lines import clean
from rdrop_jax.data.lines import read as read_lines
from rdrop_jax.errors import InputError

KINDS = ("words", "characters", "bpe")
END, UNKNOWN = "<eos>", "<unk>"


@runtime_checkable
class Vocabulary(Protocol):
    """Text to ids and back.

    Attributes:
      end: id that ends a line; a text begins after one.
      unknown: id of what is not in the vocabulary; None where there is none.
    """

    end: int
    unknown: int | None

    def __len__(self) -> int: ...

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, without its end."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; newlines where lines end."""
        ...

    def dump(self) -> str:
        """What `parse` makes a vocabulary of again."""
        ...


class Tokens:
    """Words or characters.

    Args:
      kind: "words" or "characters".
      tokens: by id; "<eos>" ends lines of words, a newline those of characters.

    Raises:
      InputError: a token that stands twice, or none that ends a line.
    """

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
        """Ids of each line, without its end.

        Raises:
          InputError: a token that is not in a vocabulary without <unk>.
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
        """Words with spaces between them, or characters."""
        tokens = [self._tokens[i] for i in ids]
        if self.kind == "characters":
            return "".join(tokens)
        lines = itertools.groupby(tokens, lambda token: token == END)
        parts = ("\n" * len(list(run)) if end else " ".join(run) for end, run in lines)
        return "".join(parts)

    def dump(self) -> str:
        """JSON."""
        value = {"kind": self.kind, "tokens": self._tokens}
        return json.dumps(value, ensure_ascii=False)


class Pieces:
    """Byte pairs, as `rdrop_jax.data.tokenizers` learns them.

    Args:
      vocabulary: the pieces.
    """

    end = tokenizers.EOS
    unknown: int | None = tokenizers.UNK

    def __init__(self, vocabulary: tokenizers.Vocabulary) -> None:
        self._pieces = vocabulary

    def __len__(self) -> int:
        return len(self._pieces)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, without its end."""
        return self._pieces.encode(list(lines))

    def decode(self, ids: Iterable[int]) -> str:
        """Lines."""
        lines: list[list[int]] = [[]]
        for i in ids:
            if i == self.end:
                lines.append([])
            else:
                lines[-1].append(i)
        return "\n".join(self._pieces.decode(line) for line in lines)

    def dump(self) -> str:
        """JSON."""
        return json.dumps({"kind": "bpe", "tokenizer": self._pieces.text})


def parse(text: str) -> Vocabulary:
    """A vocabulary from what `Vocabulary.dump` returned.

    Raises:
      InputError: something else.
    """
    try:
        value = json.loads(text)
        kind = value["kind"]
        if kind == "bpe":
            return Pieces(tokenizers.Vocabulary("bpe", value["tokenizer"]))
        return Tokens(kind, value["tokens"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"expected a vocabulary, found {text[:40]!r}") from error


def learn(kind: str, lines: Iterable[str], size: int, min_count: int) -> Vocabulary:
    """The vocabulary of a text, the most frequent first.

    Args:
      kind: one of `KINDS`.
      lines: the text.
      size: tokens at most; 0 is all, which byte pairs cannot take.
      min_count: tokens that are rarer are unknown; byte pairs do not look at it.

    Returns:
      The vocabulary. Words and characters have a token for the unknown.
    """
    lines = map(clean, lines)
    if kind == "bpe":
        return Pieces(tokenizers.train("bpe", list(lines), size))
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
    # Ordered anew: what is unknown may be frequent, and an adaptive softmax looks.
    return Tokens(kind, sorted(known, key=lambda token: (-counts[token], token)))


def read(path: Path) -> Vocabulary:
    """A vocabulary of words from a text file with one on each line.

    Raises:
      InputError: no such file, or a word that stands twice.
    """
    if not path.is_file():
        raise InputError(f"data.vocabulary: no file {str(path)!r}")
    words = [line.strip() for line in read_lines(path)]
    words = [word for word in words if word]
    return Tokens("words", words if END in words else [*words, END])
