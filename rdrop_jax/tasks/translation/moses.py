"""Moses tokenization with sacremoses, and cleaning of parallel corpora."""

import importlib.util
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from rdrop_jax.errors import InputError

# Languages written without spaces, to which Moses is not applied.
UNSPACED = ("zh", "ja")


def check_installed(field: str) -> None:
    """Raise an `InputError` if sacremoses is not installed."""
    if importlib.util.find_spec("sacremoses") is None:
        raise InputError(
            f"{field}: expected the package sacremoses, found none. Run `pip "
            "install 'rdrop-jax[nmt]'`."
        )


def make_tokenize(language: str, *, lowercase: bool = False) -> Callable[[str], str]:
    """Build a tokenizer that matches tokenizer.perl without escaping.

    Words are separated by single spaces. Curly apostrophes become straight, as in
    fairseq's prepare-iwslt14.sh.

    Args:
      language: two-letter language code.
      lowercase: True also lower-cases the text.

    Returns:
      Function ``text -> text``.
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
    """Build an approximate inverse of `make_tokenize`."""
    if language in UNSPACED:
        return lambda text: text
    from sacremoses import MosesDetokenizer

    detokenizer = MosesDetokenizer(lang=language)
    return lambda text: str(detokenizer.detokenize(text.split(), unescape=False))


def _spaced(text: str) -> str:
    """Normalize spaces and apostrophes and remove control characters."""
    text = text.replace("\u2019", "'")
    shown = (c if unicodedata.category(c)[0] != "C" else " " for c in text)
    return " ".join("".join(shown).split())


def clean(
    pairs: Iterable[tuple[str, str]], *, longest: int = 175, ratio: float = 1.5
) -> Iterator[tuple[str, str]]:
    """Filter pairs by length and length ratio, as clean-corpus-n.perl does.

    Args:
      pairs: tokenized pairs.
      longest: maximum number of words per side.
      ratio: maximum ratio of the longer to the shorter side.

    Yields:
      Pairs that pass the filter.
    """
    for pair in pairs:
        sizes = [len(text.split()) for text in pair]
        if 1 <= min(sizes) <= max(sizes) <= longest and max(sizes) <= ratio * min(
            sizes
        ):
            yield pair
