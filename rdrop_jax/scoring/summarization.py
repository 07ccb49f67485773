"""ROUGE of summaries by rouge-score, with intervals of a bootstrap over documents."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rdrop_jax.errors import InputError

NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def rouge_each(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = True,
) -> dict[str, Float[np.ndarray, " documents"]]:
    """F1 of ROUGE-1, -2, -L and -Lsum of each document, from 0 to 100.

    Words are lower-cased, anything but a-z and 0-9 parts them. Lsum is the union of
    common subsequences of sentences, which end here where white space follows one of
    ``.!?``, in summaries as in references.

    Args:
      summaries: one text per document.
      references: one or more per document; the best counts, for each score apart.
      stem: reduce words of over three letters to their stems (Porter), as papers do.

    Returns:
      The scores by the names of `NAMES`.

    Raises:
      InputError: other numbers of summaries and references, or none at all.

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
    from rouge_score.rouge_scorer import RougeScorer  # seconds: nltk

    scorer = RougeScorer(list(NAMES), use_stemmer=stem)
    rows = [
        scorer.score_multi([sentences(text) for text in each], sentences(summary))
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
) -> dict[str, float]:
    """Means of `rouge_each` over documents, and their intervals.

    Args:
      summaries: as `rouge_each`.
      references: as `rouge_each`.
      stem: as `rouge_each`.
      samples: of the bootstrap; 0 gives no intervals.

    Returns:
      ``rouge1`` and so on, each with ``rouge1_low`` and ``rouge1_high``, 95 %.
    """
    found: dict[str, float] = {}
    for name, values in rouge_each(summaries, references, stem=stem).items():
        found[name] = float(values.mean())
        if samples:
            low, high = interval(values, samples)
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found
