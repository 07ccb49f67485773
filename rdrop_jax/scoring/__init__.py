"""Scores of predictions, computed exactly over a full split."""

LOWER_IS_BETTER = ("loss", "ece", "perplexity", "bits_per_character")


def direction(name: str) -> str:
    """Return the direction in which a score improves: "max" or "min".

    Example:
      >>> direction("accuracy"), direction("loss")
      ('max', 'min')
    """
    return "min" if name in LOWER_IS_BETTER else "max"
