"""The training loop and what a run keeps in its workdir."""

LOWER_IS_BETTER = ("loss", "ece", "perplexity", "bits_per_character", "error_rate")


def direction(name: str) -> str:
    """Return the direction in which a score improves: "max" or "min".

    Example:
      >>> direction("accuracy"), direction("loss")
      ('max', 'min')
    """
    return "min" if name in LOWER_IS_BETTER else "max"
