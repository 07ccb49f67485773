"""Detection of scripts, and a tokenizer for ROUGE that handles any script."""

import re
import unicodedata
from collections.abc import Iterable

# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff"
    "\uaa60-\uaa7f\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
_HAN = re.compile(
    "[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_ASCII = re.compile("[a-z0-9]+")
_SEGMENTED = 4.0  # maximum mean word length in text that is split into words
_SHARE = 0.1  # tolerated share of letters that a tokenizer cannot split
LOST_WORDS = 0.01  # tolerated share of words damaged by rouge-score

_CHINESE = ("zh", "zho", "chi", "cmn", "yue", "wuu", "lzh", "nan", "hak", "gan", "hsn")
_BY_CHARACTER = (
    *("ja", "jpn", "ko", "kor", "th", "tha", "km", "khm", "lo", "lao", "my", "mya"),
    *("bur", "bo", "bod", "tib", "dz", "dzo"),
)


def bleu_tokenizer(language: str) -> str:
    """Return sacreBLEU's tokenizer for a language.

    Args:
      language: a language code or tag (zh, zh-CN, zho_Hans, JA), or a file extension.

    Returns:
      ``zh`` for Chinese, ``char`` for Japanese, Korean, Thai, Khmer, Lao, Burmese,
      Tibetan and Dzongkha, else ``13a``.

    Example:
      >>> [bleu_tokenizer(x) for x in ("zh_TW", "zho_Hans", "ja-JP", "de", "text")]
      ['zh', 'zh', 'char', '13a', '13a']
    """
    (code, *_) = re.split(r"[^a-z]+", language.strip().lower())
    if code in _CHINESE:
        return "zh"
    return "char" if code in _BY_CHARACTER else "13a"


def unsplit(texts: Iterable[str], tokenizer: str) -> float:
    """Return the share of letters in scripts that a tokenizer of BLEU cannot split.

    Args:
      texts: references.
      tokenizer: one of `rdrop_jax.tasks.translation.scores.TOKENIZE`. ``none`` and
        ``compound`` expect text that is already split into words.

    Returns:
      The share, above 0.1; 0 if the tokenizer can split the text.

    Example:
      >>> unsplit(["今天天气很好"], "13a"), unsplit(["今天天气很好"], "zh")
      (1.0, 0.0)
    """
    if tokenizer == "char":
        return 0.0
    letters = found = words = 0
    for text in texts:
        letters += sum(c.isalpha() for c in text)
        text = _HAN.sub(" ", text) if tokenizer == "zh" else text
        sizes = [len(_UNSPACED.findall(word)) for word in text.split()]
        found += sum(sizes)
        words += sum(size > 0 for size in sizes)
    if tokenizer in ("none", "compound") and found <= _SEGMENTED * words:
        return 0.0
    share = min(1.0, found / letters) if letters else 0.0
    return share if share > _SHARE else 0.0


class Words:
    """Tokenizer for rouge-score that handles any script.

    Words are lower-cased runs of letters, digits and their marks; a character of a
    script without spaces is a token. Text of a-z and 0-9 gives the same
    tokens as in rouge-score.

    Args:
      stem: apply the Porter stemmer to words of a-z with more than three letters.
    """

    def __init__(self, *, stem: bool = False) -> None:
        self._stemmer = None
        if stem:
            from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]

            self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text.

        Example:
          >>> Words().tokenize("L'été, आज 2 天气")
          ['l', 'été', 'आज', '2', '天', '气']
        """
        tokens = words(text)
        if self._stemmer is None:
            return tokens
        return [
            self._stemmer.stem(t) if len(t) > 3 and _ASCII.fullmatch(t) else t
            for t in tokens
        ]


def words(text: str) -> list[str]:
    """Split a text into lower-cased words, as `Words` describes them."""
    found: list[str] = []
    inside = False  # the last token can be extended
    for c in unicodedata.normalize("NFC", text.lower()):
        if "a" <= c <= "z" or "0" <= c <= "9":
            kind = "L"
        elif c in "\u200c\u200d\u00ad":  # joiners and soft hyphens do not end a word
            continue
        else:
            kind = unicodedata.category(c)[0]
        if kind == "M" and found and inside:
            found[-1] += c
        elif kind not in "LNM":
            inside = False
        elif _UNSPACED.match(c):
            found.append(c)
            inside = True
        elif inside and not _UNSPACED.match(found[-1]):
            found[-1] += c
        else:
            found.append(c)
            inside = True
    return found


def damaged(texts: Iterable[str]) -> float:
    """Return the share of words with characters that rouge-score drops.

    Example:
      >>> damaged(["the cat sat"]), damaged(["été chaud"])
      (0.0, 0.5)
    """
    count = lost = 0
    for text in texts:
        if text.isascii():
            count += len(_ASCII.findall(text.lower()))
            continue
        tokens = words(text)
        count += len(tokens)
        lost += sum(not _ASCII.fullmatch(token) for token in tokens)
    return lost / count if count else 0.0
