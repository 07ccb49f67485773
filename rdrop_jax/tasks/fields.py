"""Checks of config fields that are a family's own."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError


def check_choices(choices: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Refuses words that a field does not know.

    Args:
      choices: field to its value and what is allowed.

    Raises:
      InputError: names the field, what was expected and what was found.
    """
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(
                f"{field}: expected one of {', '.join(allowed)}, found {value!r}"
            )


def check_least(least: Mapping[str, tuple[int | float | None, int | float]]) -> None:
    """Refuses numbers that are too small.

    Args:
      least: field to its value, which may be None, and the least that is allowed.

    Raises:
      InputError: names the field, what was expected and what was found.
    """
    for field, (value, low) in least.items():
        if value is not None and not value >= low:
            raise InputError(f"{field}: expected at least {low}, found {value}")


def resized(model: ConfigDict, size: Any) -> Any:
    """A model's size with the fields of ``config.model`` that are set.

    Args:
      model: ``config.model``.
      size: a NamedTuple of depths and widths.

    Returns:
      Another of its kind.

    Raises:
      InputError: a field below 1.
    """
    chosen = {k: model[k] for k in size._fields if model[k] is not None}
    check_least({f"model.{name}": (value, 1) for name, value in chosen.items()})
    return size._replace(**chosen)


def check_heads(size: Any) -> None:
    """Refuses heads that do not divide the width of a size."""
    if size.width % size.heads:
        raise InputError(
            f"model.heads: expected a divisor of width {size.width}, found {size.heads}"
        )
