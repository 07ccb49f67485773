"""Scores of predictions, exact over a whole split."""

LOWER_IS_BETTER = ("loss", "ece", "perplexity", "bits_per_character")


def direction(name: str) -> str:
    """Whether more of a score is better: "max", or "min".

    Example:
      >>> direction("accuracy"), direction("loss")
      ('max', 'min')
    """
    return "min" if name in LOWER_IS_BETTER else "max"
