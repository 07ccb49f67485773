"""The form of answers, the same for images and texts."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rdrop_jax.errors import InputError


def class_answer(
    probabilities: Float[np.ndarray, " classes"], names: Sequence[str]
) -> dict[str, Any]:
    """The most probable class as JSON.

    Args:
      probabilities: of each class.
      names: of the classes; empty if they have no names, and ids replace them.

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
    """Refuses one input where a list of inputs is expected.

    Returns:
      The inputs.

    Raises:
      InputError: a text, bytes, one object, or nothing that can be iterated over.
    """
    single = isinstance(inputs, str | bytes | dict) or not hasattr(inputs, "__iter__")
    if single:
        raise InputError(
            f"inputs: expected a list, found {inputs!r:.60}. Pass [INPUT]."
        )
    return inputs
