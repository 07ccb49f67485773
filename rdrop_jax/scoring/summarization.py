"""ROUGE of summaries by rouge-score, with intervals of a bootstrap over documents."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rdrop_jax.errors import InputError
from rdrop_jax.scoring import scripts

# "english" is rouge-score's: a-z and 0-9 alone. "unicode" reads every script. "auto" is
# "english", and refuses references that it cannot read.
TOKENIZERS = ("auto", "english", "unicode")
_LOST = 0.5  # share of damaged words above which "auto" scores nothing
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Also after the full stops of Devanagari, Arabic, Ethiopic and, without space, of Han.
_SENTENCE_UNICODE = re.compile(
    r"(?<=[.!?\u0964\u0965\u061f\u06d4\u1362])\s+|(?<=[\u3002\uff01\uff1f])\s*"
)


def rouge_each(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = True,
    tokenizer: str = "auto",
) -> dict[str, Float[np.ndarray, " documents"]]:
    """F1 of ROUGE-1, -2, -L and -Lsum of each document, from 0 to 100.

    Words are lower-cased. With ``english`` anything but a-z and 0-9 separates them, as
    in rouge-score; with ``unicode`` they are those of `scripts.Words`. Lsum is the
    union of common subsequences of sentences, which end here where white space follows
    one of ``.!?``, in summaries as in references. With ``unicode`` they also end after
    the full stops of other scripts.

    Args:
      summaries: one text per document.
      references: one or more per document; the best counts, for each score apart.
      stem: reduce words of over three letters to their stems (Porter), as papers do;
        with ``unicode`` only words of a-z.
      tokenizer: one of `TOKENIZERS`; "auto" is "english" for references of which it
        reads at least half of the words.

    Returns:
      The scores by the names of `NAMES`.

    Raises:
      InputError: other numbers of summaries and references, none at all, or references
        that "auto" cannot read.

    Example:
      >>> found = rouge_each(["the cat sat"], [["a dog", "the cat sits"]])
      >>> [round(float(found[name][0]), 1) for name in NAMES]
      [66.7, 50.0, 66.7, 66.7]
    """
    if len(summaries) != len(references) or not references:
        raise InputError(
            "references: expected some for each summary, found "
            f"{len(references)} for {len(summaries)}"
        )
    if tokenizer == "auto":
        share = scripts.damaged(text for each in references for text in each)
        if share > _LOST:
            raise InputError(
                "tokenizer: expected one that reads the references, got english, which "
                f"damages {share:.0%} of their words. Use tokenizer='unicode', or "
                "'english' to score them all the same"
            )
    from rouge_score.rouge_scorer import RougeScorer  # seconds: nltk

    if tokenizer == "unicode":
        words, ends = scripts.Words(stem=stem), _SENTENCE_UNICODE
        scorer = RougeScorer(list(NAMES), tokenizer=words)
    else:
        scorer, ends = RougeScorer(list(NAMES), use_stemmer=stem), _SENTENCE
    rows = [
        scorer.score_multi(
            [ends.sub("\n", text) for text in each], ends.sub("\n", summary)
        )
        for summary, each in zip(summaries, references, strict=True)
    ]
    return {
        name: np.array([100 * row[name].fmeasure for row in rows]) for name in NAMES
    }


def sentences(text: str) -> str:
    """A text with one sentence on each line.

    Example:
      >>> sentences("It is. Is it?  Yes 1.5 times")
      'It is.\\nIs it?\\nYes 1.5 times'
    """
    return _SENTENCE.sub("\n", text)


def misfit(references: Sequence[Sequence[str]], tokenizer: str) -> str:
    """Return the problem of a tokenizer with the references; empty if there is none.

    Args:
      references: one or more per document.
      tokenizer: one of `TOKENIZERS`.

    Example:
      >>> misfit([["the cat sat"]], "auto"), misfit([["आज"]], "unicode")
      ('', '')
      >>> misfit([["आज"]], "auto").partition(",")[0]
      'eval.rouge_tokenizer: expected a tokenizer that reads the references'
    """
    if tokenizer == "unicode":
        return ""
    share = scripts.damaged(text for each in references for text in each)
    if share <= scripts.LOST_WORDS:
        return ""
    return (
        "eval.rouge_tokenizer: expected a tokenizer that reads the references, got "
        "english, which drops all characters but a-z and 0-9 and so damages "
        f"{max(share, 0.011):.0%} of their words. Set eval.rouge_tokenizer=unicode, or "
        "english to score them all the same"
    )


def interval(
    values: Float[np.ndarray, " documents"],
    samples: int,
    *,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap of a mean over documents.

    Args:
      values: of each document.
      samples: how often documents are drawn anew.
      seed: of the draws.
      level: share of the means that lie within.

    Returns:
      Lowest and highest.

    Example:
      >>> low, high = interval(np.array([0.0, 1.0] * 50), 1000)
      >>> low < 0.45, high > 0.55
      (True, True)
    """
    rng = np.random.default_rng(seed)
    # One draw at a time: 11,490 documents a thousand times are 92 MB at once.
    means = [
        values[rng.integers(0, len(values), len(values))].mean() for _ in range(samples)
    ]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def rouge(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = True,
    samples: int = 1000,
    tokenizer: str = "auto",
) -> dict[str, float]:
    """Means of `rouge_each` over documents, and their intervals.

    Args:
      summaries: as `rouge_each`.
      references: as `rouge_each`.
      stem: as `rouge_each`.
      samples: of the bootstrap; 0 gives no intervals.
      tokenizer: as `rouge_each`.

    Returns:
      ``rouge1`` and so on, each with ``rouge1_low`` and ``rouge1_high``, 95 %.
    """
    found: dict[str, float] = {}
    each = rouge_each(summaries, references, stem=stem, tokenizer=tokenizer)
    for name, values in each.items():
        found[name] = float(values.mean())
        if samples:
            low, high = interval(values, samples)
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found
