"""Metrics on the host: accuracy, F1, Matthews, Pearson, Spearman and F1 of spans.

Each metric is defined for constant predictions or labels: F1, Matthews and both
correlations are then 0.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats
from scipy.special import log_softmax

_PREFIXES = "BIESMLU"

Ids = Int[np.ndarray, " rows"]
Numbers = Float[np.ndarray, " rows"]
Seen = Bool[np.ndarray, " words"]
Tags = Shaped[np.ndarray, " words"]


def f1(predicted: Ids, labels: Ids, num_classes: int) -> float:
    """Compute F1 of class 1 for two classes, and macro-averaged F1 for more.

    F1 of a class is 2 tp / (2 tp + fp + fn), and 0 for a class that does not occur.

    Args:
      predicted: class ids.
      labels: class ids.
      num_classes: number of classes.

    Returns:
      The F1 score, between 0 and 1.
    """
    from sklearn.metrics import f1_score  # slow

    classes = [1] if num_classes == 2 else list(range(num_classes))
    return float(
        f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0)
    )


def f1_multilabel(
    predicted: Bool[np.ndarray, "rows labels"], labels: Bool[np.ndarray, "rows labels"]
) -> dict[str, float]:
    """Compute F1 over all rows and labels (micro) and its mean over labels (macro)."""
    both = np.sum(predicted & labels, axis=0)
    either = np.sum(predicted, axis=0) + np.sum(labels, axis=0)
    return {
        "f1_micro": float(2 * both.sum() / max(1, either.sum())),
        "f1_macro": float(np.mean(2 * both / np.maximum(1, either))),
    }


def matthews(predicted: Ids, labels: Ids) -> float:
    """Compute Matthews' correlation for any number of classes (Gorodkin, 2004).

    Args:
      predicted: class ids.
      labels: class ids.

    Returns:
      The correlation, between -1 and 1; 0 if predictions or labels are constant.
    """
    from sklearn.metrics import matthews_corrcoef  # slow

    if len(np.union1d(predicted, labels)) < 2:  # scikit-learn warns
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(predicted: Numbers, labels: Numbers) -> float:
    """Compute Pearson's correlation; 0 if either input is constant.

    Example:
      >>> import numpy as np
      >>> round(pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 6)
      1.0
    """
    if _constant(predicted) or _constant(labels):
        return 0.0
    return float(stats.pearsonr(predicted, labels).statistic)


def spearman(predicted: Numbers, labels: Numbers) -> float:
    """Compute Pearson's correlation of average ranks; 0 if an input is constant."""
    if _constant(predicted) or _constant(labels):
        return 0.0
    return float(stats.spearmanr(predicted, labels).statistic)


def _constant(values: Numbers) -> bool:
    return len(values) == 0 or bool(np.all(values == values[0]))


def _all_or_nan(found: dict[str, float]) -> dict[str, float]:
    """Return NaN for all scores if the loss is NaN: some outputs are NaN then."""
    # Counts are int, scores are float.
    if not math.isnan(found["loss"]):
        return found
    return {x: math.nan if isinstance(y, float) else y for x, y in found.items()}


def of_classes(
    logits: Float[np.ndarray, "rows classes"], labels: Ids
) -> dict[str, float]:
    """Compute scores of class logits; ``loss`` is the cross entropy in nats."""
    predicted, count = np.argmax(logits, axis=-1), logits.shape[-1]
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    return _all_or_nan(
        {
            "accuracy": float(np.mean(predicted == labels)),
            "f1": f1(predicted, labels, count),
            "matthews": matthews(predicted, labels),
            "loss": float(-np.mean(log_p[np.arange(len(labels)), labels])),
            "examples": len(labels),
        }
    )


def of_label_sets(
    logits: Float[np.ndarray, "rows labels"], labels: Float[np.ndarray, "rows labels"]
) -> dict[str, float]:
    """Compute scores of multi-label logits; ``accuracy`` is the exact-match ratio."""
    predicted, wanted = logits > 0, labels > 0.5
    z = np.where(wanted, logits, -logits).astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN
        losses = np.logaddexp(0.0, -z)
    return _all_or_nan(
        {
            "accuracy": float(np.mean(np.all(predicted == wanted, axis=1))),
            **f1_multilabel(predicted, wanted),
            "loss": float(np.mean(np.sum(losses, axis=1))),
            "examples": len(labels),
        }
    )


def of_numbers(
    outputs: Float[np.ndarray, "rows 1"], labels: Numbers
) -> dict[str, float]:
    """Compute scores of a regression; ``loss`` is the mean squared error."""
    found = outputs[:, 0].astype(np.float64)
    return {
        "pearson": pearson(found, labels),
        "spearman": spearman(found, labels),
        "loss": float(np.mean((found - labels) ** 2)),
        "examples": len(labels),
    }


class Span(NamedTuple):
    """Span of words with one label.

    Attributes:
      label: name without the prefix.
      start: number of the first word.
      end: number of the last word, plus one.
    """

    label: str
    start: int
    end: int


def spans(tags: Sequence[str], classes: Sequence[str] = ()) -> list[Span]:
    """Return the spans of a sentence: IOB1, IOB2, IOBES, BMES and BILOU.

    Follows the evaluation of CoNLL-2000: a span starts at B, S or U, where the label
    changes, and after O or the end of a span. A tag without a prefix is a span of one
    word. If all classes are prefixes, with B or I among them, every label is "_".

    Args:
      tags: tag of each word.
      classes: class names.

    Example:
      >>> spans(["B-PER", "I-PER", "O", "I-LOC"])
      [Span(label='PER', start=0, end=2), Span(label='LOC', start=3, end=4)]
    """
    if {*classes} & {"B", "I"} and {*classes} <= {*_PREFIXES, "O"}:
        tags = [tag if tag == "O" else f"{tag}-_" for tag in tags]
    found: list[Span] = []
    before = "O"
    for i, tag in enumerate(tags):
        parts = re.fullmatch(f"([{_PREFIXES}])-(.+)", tag)
        prefix, label = parts.groups() if parts else ("O" if tag == "O" else "S", tag)
        inner = prefix in "IMEL" and before in "BIM" and found[-1].label == label
        if inner:
            found[-1] = found[-1]._replace(end=i + 1)
        elif prefix != "O":
            found.append(Span(label, i, i + 1))
        before = prefix
    return found


def best_tags(
    logits: Float[np.ndarray, "words classes"], seen: Seen, classes: Sequence[str]
) -> Tags:
    """Return the best class of each word, and O for words without logits.

    Args:
      logits: logits of the words that the model has seen; other rows are ignored.
      seen: words that the model has seen.
      classes: class names by id.
    """
    best = np.argmax(logits, axis=-1)
    return np.where(seen, np.asarray(classes)[best], "O")


def of_words(
    logits: Float[np.ndarray, "words classes"],
    labels: Int[np.ndarray, " words"],
    seen: Seen,
    counts: Sequence[int],
    classes: Sequence[str],
) -> dict[str, float]:
    """Compute scores of spans over all sentences, and accuracy and loss of words.

    Args:
      logits: logits of the words of all sentences.
      labels: class ids.
      seen: see `best_tags`; the loss leaves out other words.
      counts: number of words of each sentence.
      classes: class names by id.
    """
    predicted = best_tags(logits, seen, classes)
    wanted = np.asarray(classes)[labels]
    ends = np.cumsum(counts)[:-1]
    found, known = (
        {
            (row, span)
            for row, part in enumerate(np.split(tags, ends))
            for span in spans(part.tolist(), classes)
        }
        for tags in (predicted, wanted)
    )
    hits = len(found & known)
    log_p = log_softmax(logits[seen].astype(np.float64), axis=-1)
    nll = -log_p[np.arange(len(log_p)), labels[seen]]
    return _all_or_nan(
        {
            "f1": 2 * hits / max(1, len(found) + len(known)),
            "precision": hits / max(1, len(found)),
            "recall": hits / max(1, len(known)),
            "accuracy": float(np.mean(predicted == wanted)),
            "loss": float(np.sum(nll) / max(1, len(nll))),
            "examples": len(counts),
            "words": len(labels),
            "words_cut": int(np.sum(~seen)),
        }
    )


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "classes": of_classes,
    "multilabel": of_label_sets,
    "numbers": of_numbers,
}
NAMES = {
    "classes": ("accuracy", "f1", "matthews", "loss"),
    "multilabel": ("accuracy", "f1_micro", "f1_macro", "loss"),
    "numbers": ("pearson", "spearman", "loss"),
    "words": ("f1", "precision", "recall", "accuracy", "loss"),
}
