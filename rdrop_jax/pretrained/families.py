"""Model families that each task can be initialized from. Does not import jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import weight_files

# Values of model_type in config.json.
FAMILIES = {
    "image_classification": ("vit",),
    "text_classification": ("bert", "roberta"),
    "summarization": ("bart",),
}


def check(config: ConfigDict) -> None:
    """Check ``init_from`` of a config by headers and sizes, before importing jax.

    Raises:
      InputError: the weights are missing, invalid, or of another model family.
    """
    path = Path(config.init_from)
    if config.task not in FAMILIES and weight_files.is_weights(path):
        raise only_workdirs(config.init_from)
    if path.exists() and weight_files.is_weights(path):
        check_type(weight_files.read_config(path), _wanted(config), path)
    weight_files.check(config.init_from)


def only_workdirs(name: str) -> InputError:
    """Return the error of a task that only supports weights from workdirs."""
    return InputError(f"init_from: expected a workdir for this task, found {name}")


def check_type(config: Mapping[str, Any], wanted: str, path: Path) -> None:
    """Check the ``model_type`` of a config.json.

    Args:
      config: content of the file; passes if it has no model_type.
      wanted: family of the model; empty if unknown.
      path: path of the weights, for the message.

    Raises:
      InputError: the family differs.
    """
    found = config.get("model_type")
    if found is None or not wanted or found == wanted:
        return
    known = "; ".join(f"{task}: {', '.join(types)}" for task, types in FAMILIES.items())
    remedy = f"Families that can be read: {known}."
    if any(found in types and wanted in types for types in FAMILIES.values()):
        remedy = f"Use a preset with model.name={found}, or weights of {wanted}."
    raise InputError(
        f"init_from: {path}: model_type of config.json: expected {wanted}, got "
        f"{found!r}. {remedy}"
    )


def _wanted(config: ConfigDict) -> str:
    families = FAMILIES[config.task]
    if len(families) == 1:
        return families[0]
    return config.model.name if config.model.name in families else ""
