"""Answer format shared by image and text tasks."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rdrop_jax.errors import InputError


def class_answer(
    probabilities: Float[np.ndarray, " classes"], names: Sequence[str]
) -> dict[str, Any]:
    """Return the most probable class as a JSON-ready dict.

    Args:
      probabilities: probability of each class.
      names: class names; if empty, class ids are used instead.

    Returns:
      ``label`` (the name), ``id``, ``probability`` and ``probabilities`` by name.

    Example:
      >>> class_answer(np.array([0.25, 0.75]), ("bad", "good"))["label"]
      'good'
    """
    names = tuple(names) or tuple(map(str, range(len(probabilities))))
    each = {
        name: round(float(p), 6) for name, p in zip(names, probabilities, strict=True)
    }
    best = int(np.argmax(probabilities))
    return {
        "label": names[best],
        "id": best,
        "probability": each[names[best]],
        "probabilities": each,
    }


def check_list(inputs: Any) -> Iterable[Any]:
    """Check that a list of inputs was passed, not a single input.

    Returns:
      The inputs.

    Raises:
      InputError: the inputs are a string, bytes, a dict, or not iterable.
    """
    single = isinstance(inputs, str | bytes | dict) or not hasattr(inputs, "__iter__")
    if single:
        raise InputError(
            f"inputs: expected a list, found {inputs!r:.60}. Pass [INPUT]."
        )
    return inputs
