"""Validation of alpha, the consistency weight, and the number of passes it needs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_zero(alpha: object) -> bool:
    """Return whether alpha is the constant 0, which needs no second pass."""
    return isinstance(alpha, (int, float, np.number)) and alpha == 0


def resolve_num_passes(alpha: object, num_passes: int | None) -> int:
    """Return ``num_passes`` if given, else 1 if alpha is the constant 0, else 2."""
    if num_passes is None:
        return 1 if is_zero(alpha) else 2
    if num_passes < 1:
        raise ValueError(f"num_passes must be at least 1: found {num_passes}")
    return num_passes


def check_alpha(alpha: Any, *, num_passes: int | None = None) -> None:
    """Check that alpha is a scalar >= 0; values of traced scalars are not checked.

    Args:
      alpha: weight of the consistency term.
      num_passes: number of passes; one pass needs alpha 0. None skips this check.

    Raises:
      ValueError: alpha is a function, None, a string, an array, negative, infinite or
        NaN, or positive with one pass.
    """
    if callable(alpha):
        raise ValueError(
            "alpha must be a number: found a function. Call the schedule, "
            "alpha=schedule(step), or pass it to make_train_step(alpha=schedule)"
        )
    number = isinstance(alpha, int | float | np.number | np.ndarray | jax.Array)
    if not number or not jnp.issubdtype(jnp.result_type(alpha), jnp.number):
        raise ValueError(f"alpha must be a number >= 0: found {alpha!r}")
    shape = np.shape(alpha)
    if shape:
        raise ValueError(f"alpha must be a scalar: found shape {shape}")
    if isinstance(alpha, jax.core.Tracer):
        return
    if not np.asarray(alpha) >= 0:
        raise ValueError(f"alpha must be >= 0: found {alpha}")
    if np.isinf(alpha):
        raise ValueError(f"alpha must be finite: found {alpha}")
    if num_passes == 1 and np.asarray(alpha) > 0:
        raise ValueError(
            "alpha must be 0 for one pass, which has no consistency term: found "
            f"{alpha}. Run the model twice, as forward_passes does, and stack the "
            "outputs on axis 0, or pass alpha=0.0"
        )
