"""GLUE metrics on the host: accuracy, F1, Matthews, Pearson and Spearman.

Each metric is defined for constant predictions or labels: F1, Matthews and both
correlations are then 0.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from scipy.special import log_softmax

Ids = Int[np.ndarray, " rows"]
Numbers = Float[np.ndarray, " rows"]


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


def of_classes(
    logits: Float[np.ndarray, "rows classes"], labels: Ids
) -> dict[str, float]:
    """Compute scores of class logits; ``loss`` is the cross entropy in nats."""
    predicted, count = np.argmax(logits, axis=-1), logits.shape[-1]
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "f1": f1(predicted, labels, count),
        "matthews": matthews(predicted, labels),
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
        **f1_multilabel(predicted, wanted),
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
