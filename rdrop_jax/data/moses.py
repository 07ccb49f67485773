"""Moses tokenisation by sacremoses, and the cleaning of parallel corpora."""

import importlib.util
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from rdrop_jax.errors import InputError

# Written without spaces between words: Moses leaves them alone.
UNSPACED = ("zh", "ja")


def check(field: str) -> None:
    """Raises `InputError` where sacremoses is not installed."""
    if importlib.util.find_spec("sacremoses") is None:
        raise InputError(
            f"{field}: expected the package sacremoses, found none; pip install "
            "'rdrop-jax[nmt]'"
        )


def make_tokenize(language: str, *, lowercase: bool = False) -> Callable[[str], str]:
    """Text to words with single spaces between them, as tokenizer.perl, no escapes.

    Args:
      language: two letters.
      lowercase: lower-case too.

    Returns:
      ``text -> text``.
    """
    if language in UNSPACED:
        return lambda text: _spaced(text.lower() if lowercase else text)
    from sacremoses import MosesTokenizer

    tokenizer = MosesTokenizer(lang=language)

    def tokenize(text: str) -> str:
        words = tokenizer.tokenize(_spaced(text), escape=False, return_str=True)
        return str(words).lower() if lowercase else str(words)

    return tokenize


def make_detokenize(language: str) -> Callable[[str], str]:
    """The inverse of `make_tokenize`, as far as there is one."""
    if language in UNSPACED:
        return lambda text: text
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(lang=language)
    return lambda text: str(detokenizer.detokenize(text.split(), unescape=False))


def _spaced(text: str) -> str:
    """Single spaces, and nothing that does not print."""
    shown = (c if unicodedata.category(c)[0] != "C" else " " for c in text)
    return " ".join("".join(shown).split())


def clean(
    pairs: Iterable[tuple[str, str]],
    languages: tuple[str, str],
    *,
    longest: int = 175,
    ratio: float = 1.5,
) -> Iterator[tuple[str, str]]:
    """Pairs of 1 to ``longest`` words whose lengths are alike, as clean-corpus-n.perl.

    Args:
      pairs: tokenised.
      languages: of both sides. Where one has no spaces between words its characters
        count as words, and the ratio, which would mean nothing, is not looked at.
      longest: most words on a side.
      ratio: how many times as long one side may be as the other.

    Yields:
      Those that stay.
    """
    counts = [len if language in UNSPACED else _words for language in languages]
    for pair in pairs:
        sizes = [count(text) for count, text in zip(counts, pair, strict=True)]
        if not 1 <= min(sizes) <= max(sizes) <= longest:
            continue
        if counts[0] is counts[1] and max(sizes) > ratio * min(sizes):
            continue
        yield pair


def _words(text: str) -> int:
    return len(text.split())
