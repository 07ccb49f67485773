"""Checks of config fields, shared by tasks."""

import importlib
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.errors import InputError

# Shape and dtype by name of an array of a batch.
Shapes = dict[str, tuple[tuple[int, ...], str]]
# Views by name, with their default rates. Images: 4 of 32 pixels (He et al., 2016), and
# magnitude 9 of 10. Texts: the published code for GLUE, and for translation.
IMAGE_VIEWS = {"crop": 0.125, "randaugment": 0.9}
TEXT_VIEWS = {"token_cutoff": 0.1, "feature_cutoff": 0.1, "span_cutoff": 0.1}
SIMCUT = "simcut"
SEQ2SEQ_VIEWS = TEXT_VIEWS | {"token_cutoff": 0.05, SIMCUT: 0.05}


def check_choices(choices: Mapping[str, tuple[str, Sequence[str]]]) -> None:
    """Check that fields have one of their allowed values.

    Args:
      choices: maps each field to its value and the allowed values.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    for field, (value, allowed) in choices.items():
        if value not in allowed:
            raise InputError(
                f"{field}: expected one of {', '.join(allowed)}, found {value!r}"
            )


def check_least(least: Mapping[str, tuple[int | float | None, int | float]]) -> None:
    """Check that numbers are finite and not below their minimum.

    Args:
      least: maps each field to its value, which may be None, and its minimum.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    for field, (value, low) in least.items():
        if value is not None and not value >= low:
            raise InputError(f"{field}: expected at least {low}, found {value}")
        if value is not None and math.isinf(value):
            raise InputError(f"{field}: expected a finite number, found {value}")


def shared(config: ConfigDict, names: Sequence[str]) -> dict[str, Any]:
    """Return fields of ``data`` by name, tuples as lists as in a stored config."""
    flat = config_lib.flatten(config)
    return {f"data.{name}": flat[f"data.{name}"] for name in names}


def model_module(config: ConfigDict, models: Mapping[str, str]) -> ModuleType:
    """Import the module that builds the model of a config.

    Args:
      config: config of the run.
      models: modules by ``model.name``.

    Raises:
      InputError: an unknown ``model.name``.
    """
    check_choices({"model.name": (config.model.name, tuple(models))})
    return importlib.import_module(models[config.model.name])


def resized(model: ConfigDict, size: Any) -> Any:
    """Override a model size with the fields set in ``config.model``.

    Args:
      model: ``config.model``.
      size: a NamedTuple of depths and widths.

    Returns:
      A NamedTuple of the same type.

    Raises:
      InputError: a field is below 1.
    """
    chosen = {k: model[k] for k in size._fields if model[k] is not None}
    check_least({f"model.{name}": (value, 1) for name, value in chosen.items()})
    return size._replace(**chosen)


def check_heads(size: Any) -> None:
    """Check that the number of heads divides the width."""
    if size.width % size.heads:
        raise InputError(
            f"model.heads: expected a divisor of width {size.width}, found {size.heads}"
        )


def check_positions(size: Any, positions: str) -> None:
    """Check that the width is even, which sines and cosines need."""
    if positions != "learned" and size.width % 2:
        raise InputError(
            f"model.width: expected an even number with model.positions={positions}, "
            f"found {size.width}"
        )


def views_rate(r: ConfigDict, rates: Mapping[str, float]) -> float | None:
    """Return the rate of ``rdrop.views``; None if the field is "none".

    Args:
      r: ``config.rdrop``.
      rates: views that the task supports, with their default rates.

    Raises:
      InputError: a view that the task does not support.
    """
    check_choices({"rdrop.views": (r.views, ("none", *rates))})
    if r.views == "none":
        return None
    return float(rates[r.views] if r.views_rate is None else r.views_rate)
