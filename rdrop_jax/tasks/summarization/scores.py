"""ROUGE by rouge-score, with bootstrap confidence intervals over documents."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rdrop_jax.data.bootstrap import mean_interval
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import scripts

# "english" is rouge-score's tokenizer: only a-z and 0-9. "unicode" supports every
# script. Configs also accept "auto", which is "english" if `misfit` finds no problem.
TOKENIZERS = ("auto", "english", "unicode")
NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
# Also after full stops of Devanagari, Arabic and Ethiopic, and of Han without a space.
_SENTENCE_UNICODE = re.compile(
    r"(?<=[.!?\u0964\u0965\u061f\u06d4\u1362])\s+|(?<=[\u3002\uff01\uff1f])\s*"
)


def rouge_each(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = True,
    tokenizer: str = "english",
) -> dict[str, Float[np.ndarray, " documents"]]:
    """Compute F1 of ROUGE-1, -2, -L and -Lsum per document, from 0 to 100.

    Words are lower-cased. With ``english`` anything but a-z and 0-9 separates them, as
    in rouge-score; with ``unicode`` they are those of `scripts.Words`. Lsum is the
    union of common subsequences of sentences. In summaries and references, a sentence
    ends where white space follows one of ``.!?``; with ``unicode`` also after the full
    stops of other scripts.

    Args:
      summaries: one text per document.
      references: one or more per document; each score uses the best one separately.
      stem: apply the Porter stemmer to words of more than three letters, as papers do;
        with ``unicode`` only to words of a-z.
      tokenizer: "english" or "unicode".

    Returns:
      The scores per document, keyed by `NAMES`.

    Raises:
      InputError: the numbers of summaries and references differ, or there are no
        references.

    Example:
      >>> found = rouge_each(["the cat sat"], [["a dog", "the cat sits"]])
      >>> [round(float(found[name][0]), 1) for name in NAMES]
      [66.7, 50.0, 66.7, 66.7]
    """
    if len(summaries) != len(references) or not references:
        raise InputError(
            "references: expected at least one for each summary, found "
            f"{len(references)} for {len(summaries)}"
        )
    from rouge_score.rouge_scorer import RougeScorer  # slow: imports nltk

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


def misfit(references: Sequence[Sequence[str]], tokenizer: str) -> str:
    """Return a tokenizer's problem with the references, or an empty text.

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
        "english to score them anyway"
    )


def rouge(
    summaries: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    stem: bool = True,
    samples: int = 1000,
    tokenizer: str = "english",
) -> dict[str, float]:
    """Average `rouge_each` over documents, with confidence intervals.

    Args:
      summaries: see `rouge_each`.
      references: see `rouge_each`.
      stem: see `rouge_each`.
      samples: number of bootstrap resamples; 0 disables the intervals.
      tokenizer: see `rouge_each`.

    Returns:
      ``rouge1`` etc., each with its 95 % interval ``rouge1_low``, ``rouge1_high``.
    """
    found: dict[str, float] = {}
    each = rouge_each(summaries, references, stem=stem, tokenizer=tokenizer)
    for name, values in each.items():
        found[name] = float(values.mean())
        if samples:
            low, high = mean_interval(values, samples)
            found |= {f"{name}_low": low, f"{name}_high": high}
    return found
