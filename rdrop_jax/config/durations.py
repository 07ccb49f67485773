"""Durations in steps, epochs, percent or seconds."""

import re

from ml_collections import ConfigDict

from rdrop_jax.config.fields import DURATIONS, flatten
from rdrop_jax.errors import InputError

# log.every also accepts seconds.
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:s|seconds?)")
_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)?")


def to_steps(
    name: str, value: int | str, steps_per_epoch: float, total_steps: int | None = None
) -> int:
    """Convert a duration to steps.

    Args:
      name: name of the field, for messages.
      value: number of steps, "20 epochs", or "5%".
      steps_per_epoch: steps per epoch of the training data.
      total_steps: number of steps that a percentage refers to.

    Returns:
      An integer number of steps; at least 1 if the duration is not 0.

    Raises:
      InputError: not a duration.
    """
    match = _UNIT.fullmatch(str(value).strip())
    percent = match is not None and match[2] == "%"
    if match is None or (percent and total_steps is None) or isinstance(value, bool):
        allowed = "steps or 'N epochs'" + ("" if total_steps is None else " or 'N%'")
        allowed += " or 'N seconds'" if name == "log.every" else ""
        raise InputError(f"{name}: expected {allowed}, found {value!r}")
    number, unit = float(match[1]), match[2] or "steps"
    if unit.startswith("epoch"):
        number *= steps_per_epoch
    elif percent:
        number *= (total_steps or 0) / 100
    if number >= 2**31:  # jax counts steps in 32 bits
        raise InputError(
            f"{name}: expected fewer than {2**31} steps, found {value!s:.40}"
        )
    if unit.startswith("step") and number != int(number):
        raise InputError(f"{name}: expected whole steps, found {value!r}")
    return max(1, round(number)) if number else 0


def log_seconds(value: int | str) -> float:
    """Return the seconds of ``log.every="30 seconds"``; 0 for a number of steps."""
    match = _SECONDS.fullmatch(str(value).strip())
    return float(match[1]) if match else 0.0


def resolve(config: ConfigDict, steps_per_epoch: float) -> ConfigDict:
    """Return a frozen copy with all durations in steps, except seconds in log.every."""
    resolved = config.copy_and_resolve_references().unlock()
    flat = flatten(resolved)
    total = to_steps("total_steps", flat["total_steps"], steps_per_epoch)
    if total < 1:
        raise InputError(f"total_steps: expected at least 1, found {total}")
    timed = log_seconds(flat["log.every"]) > 0
    kept = {"total_steps"} | ({"log.every"} if timed else set())
    others = [name for name in DURATIONS if name not in kept]
    steps = {n: to_steps(n, flat[n], steps_per_epoch, total) for n in others}
    with resolved.ignore_type():
        resolved.update_from_flattened_dict({"total_steps": total} | steps)
    return resolved.lock()
