"""GLUE metrics on the host: accuracy, F1, Matthews, Pearson and Spearman.

Each metric is defined for constant predictions or labels: F1, Matthews and both
correlations are then 0. scikit-learn does the same for F1 and Matthews.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_softmax
from scipy.stats import rankdata

Ids = Int[np.ndarray, " rows"]
Numbers = Float[np.ndarray, " rows"]


def accuracy(predicted: Ids, labels: Ids) -> float:
    """Return the share of rows that are predicted correctly.

    Example:
      >>> import numpy as np
      >>> accuracy(np.array([0, 1]), np.array([0, 0]))
      0.5
    """
    return float(np.mean(predicted == labels))


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
    each = [
        _f1(predicted == c, labels == c)
        for c in ([1] if num_classes == 2 else range(num_classes))
    ]
    return float(np.mean(each))


def f1_micro(
    predicted: Bool[np.ndarray, "rows labels"], labels: Bool[np.ndarray, "rows labels"]
) -> float:
    """Compute micro-averaged F1 over rows and labels; 0 if there are no positives."""
    return _f1(predicted, labels)


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    both, either = np.sum(predicted & labels), np.sum(predicted) + np.sum(labels)
    return float(2 * both / either) if either else 0.0


def matthews(predicted: Ids, labels: Ids, num_classes: int) -> float:
    """Compute Matthews' correlation for any number of classes (Gorodkin, 2004).

    Args:
      predicted: class ids.
      labels: class ids.
      num_classes: number of classes.

    Returns:
      The correlation, between -1 and 1; 0 if predictions or labels are constant.
    """
    table = np.zeros((num_classes, num_classes), np.float64)
    np.add.at(table, (labels, predicted), 1.0)
    rows, true, guessed = table.sum(), table.sum(axis=1), table.sum(axis=0)
    spread = (rows**2 - true @ true) * (rows**2 - guessed @ guessed)
    if spread == 0:
        return 0.0
    return float((np.trace(table) * rows - true @ guessed) / np.sqrt(spread))


def pearson(predicted: Numbers, labels: Numbers) -> float:
    """Compute Pearson's correlation; 0 if either input is constant.

    Example:
      >>> import numpy as np
      >>> pearson(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]))
      1.0
    """
    a, b = (_centred(x) for x in (predicted, labels))
    if not a.any() or not b.any():
        return 0.0
    # Normalize before multiplying: squares of tiny numbers underflow.
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(np.clip(a @ b, -1.0, 1.0))


def _centred(x: np.ndarray) -> np.ndarray:
    """Center and scale to at most 1; exactly 0 for a constant, unlike ``x - mean``."""
    x = np.asarray(x, np.float64)
    if x.size == 0 or np.all(x == x[0]):
        return np.zeros(x.shape)
    x = x - x.mean()
    return np.asarray(x / np.abs(x).max())


def spearman(predicted: Numbers, labels: Numbers) -> float:
    """Compute Pearson's correlation of average ranks; 0 if an input is constant."""
    return pearson(rankdata(predicted), rankdata(labels))


def of_classes(
    logits: Float[np.ndarray, "rows classes"], labels: Ids
) -> dict[str, float]:
    """Compute scores of class logits; ``loss`` is the cross entropy in nats."""
    predicted, count = np.argmax(logits, axis=-1), logits.shape[-1]
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    return {
        "accuracy": accuracy(predicted, labels),
        "f1": f1(predicted, labels, count),
        "matthews": matthews(predicted, labels, count),
        "loss": float(-np.mean(log_p[np.arange(len(labels)), labels])),
        "examples": len(labels),
    }


def of_label_sets(
    logits: Float[np.ndarray, "rows labels"], labels: Float[np.ndarray, "rows labels"]
) -> dict[str, float]:
    """Compute scores of multi-label logits; ``accuracy`` is the exact-match ratio."""
    predicted, wanted = logits > 0, labels > 0.5
    z = np.where(wanted, logits, -logits).astype(np.float64)
    return {
        "accuracy": float(np.mean(np.all(predicted == wanted, axis=1))),
        "f1_micro": f1_micro(predicted, wanted),
        "f1_macro": float(
            np.mean([_f1(a, b) for a, b in zip(predicted.T, wanted.T, strict=True)])
        ),
        "loss": float(np.mean(np.sum(np.logaddexp(0.0, -z), axis=1))),
        "examples": len(labels),
    }


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


SCORES: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "classes": of_classes,
    "multilabel": of_label_sets,
    "numbers": of_numbers,
}
NAMES = {
    "classes": ("accuracy", "f1", "matthews", "loss"),
    "multilabel": ("accuracy", "f1_micro", "f1_macro", "loss"),
    "numbers": ("pearson", "spearman", "loss"),
}
