"""BLEU and chrF by sacreBLEU, exact match, and tokenised BLEU."""

import itertools
import re
from collections.abc import Sequence

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import scripts

# Tokenizers of BLEU. "none" splits at white space only: the tokenised BLEU of papers
# (multi-bleu.perl), for text that is already tokenised. "compound" also splits
# hyphenated compounds in hypotheses and references (fairseq's compound_split_bleu.sh).
TOKENIZE = ("13a", "intl", "zh", "char", "none", "compound")
# Configs also accept "auto", which selects the tokenizer of the target language.
AUTO = "auto"
_COMPOUND = re.compile(r"(\S)-(\S)")


def chosen(tokenize: str, language: str) -> str:
    """Resolve the BLEU tokenizer: ``tokenize``, or for "auto" that of the language.

    Example:
      >>> chosen("auto", "zh-CN"), chosen("13a", "zh-CN")
      ('zh', '13a')
    """
    return scripts.bleu_tokenizer(language) if tokenize == AUTO else tokenize


def misfit(references: Sequence[str], tokenize: str, language: str) -> str:
    """Return a tokenizer's problem with the references, or an empty text.

    Args:
      references: reference translations of a split.
      tokenize: one of `TOKENIZE` or "auto".
      language: language code of the references.

    Example:
      >>> misfit(["ein Haus"], "auto", "de"), misfit(["一座房子"], "auto", "zh")
      ('', '')
    """
    used = chosen(tokenize, language)
    share = scripts.unsplit(references, used)
    if not share:
        return ""
    return (
        f"eval.bleu: expected a tokenizer that splits the references, got {used} for "
        f"references with {share:.0%} of their letters in a script without spaces. Set "
        "eval.bleu=zh for Chinese, eval.bleu=char for other languages, or eval.bleu="
        "none if the text is split into words already"
    )


def scores(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    tokenize: str = "13a",
) -> dict[str, float]:
    """Compute corpus-level scores, from 0 to 100; exact match from 0 to 1.

    Args:
      hypotheses: translations.
      references: for each translation, its reference or all of its references.
      tokenize: one of `TOKENIZE`, for BLEU.

    Returns:
      ``bleu``, ``chrf`` (chrF2) and ``exact_match``.

    Raises:
      InputError: the numbers of hypotheses and references differ or are zero, or
        ``tokenize`` is unknown.

    Example:
      >>> found = scores(["a small house"], ["a small house"])
      >>> round(found["bleu"]), round(found["chrf"]), found["exact_match"]
      (0, 100, 1.0)
      >>> round(scores(["a very small house"], ["a very small house"])["bleu"])
      100
    """
    if tokenize not in TOKENIZE:
        raise InputError(
            f"eval.bleu: expected one of {', '.join(TOKENIZE)}, found {tokenize!r}"
        )
    if len(hypotheses) != len(references) or not references:
        raise InputError(
            "references: expected one for each translation, found "
            f"{len(references)} for {len(hypotheses)}"
        )
    rows = [[each] if isinstance(each, str) else list(each) for each in references]
    equal = sum(h in row for h, row in zip(hypotheses, rows, strict=True))
    bleu, chrf = _metrics(tokenize)
    chrf_score = chrf.corpus_score(hypotheses, _streams(rows)).score
    if tokenize == "compound":
        hypotheses, *rows = (
            [split_compounds(text) for text in texts] for texts in (hypotheses, *rows)
        )
    return {
        "bleu": bleu.corpus_score(hypotheses, _streams(rows)).score,
        "chrf": chrf_score,
        "exact_match": equal / len(hypotheses),
    }


def _streams(rows: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return the first reference of each row, the second ones, ..., as sacreBLEU."""
    return [list(each) for each in itertools.zip_longest(*rows)]


def signatures(
    tokenize: str = "13a", references: Sequence[Sequence[str]] = (("",),)
) -> dict[str, str]:
    """Return the sacreBLEU signatures of these scores, for reproducibility.

    Args:
      tokenize: one of `TOKENIZE`, for BLEU.
      references: all references of each translation, of which only the number is used.
    """
    bleu, chrf = _metrics(tokenize)
    rows = [["a"] * count for count in sorted({len(row) for row in references})]
    for metric in (bleu, chrf):  # signatures name the number of references
        metric.corpus_score(["a"] * len(rows), _streams(rows))
    extra = "|compounds:split" if tokenize == "compound" else ""
    return {
        "bleu": f"{bleu.get_signature()}{extra}",
        "chrf": str(chrf.get_signature()),
    }


def _metrics(tokenize: str):  # type: ignore[no-untyped-def]
    from sacrebleu.metrics import BLEU, CHRF

    # "force" only suppresses sacreBLEU's warning that the text looks tokenised.
    cut = "none" if tokenize == "compound" else tokenize
    return BLEU(tokenize=cut, force=cut == "none"), CHRF()


def split_compounds(text: str) -> str:
    """Split ``well-known`` into ``well ##AT##-##AT## known``, as fairseq's script.

    Example:
      >>> split_compounds("a well-known-a b - c")
      'a well ##AT##-##AT## known ##AT##-##AT## a b - c'
    """
    return _COMPOUND.sub(r"\1 ##AT##-##AT## \2", text)
