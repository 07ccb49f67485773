"""Model families of other libraries that each task can start from. Needs no jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import files

# Values of model_type in config.json.
FAMILIES = {
    "image_classification": ("vit",),
    "text_classification": ("bert", "roberta"),
    "summarization": ("bart",),
}


def check(config: ConfigDict) -> None:
    """Check ``init_from`` of a config by headers and sizes, before jax starts.

    Raises:
      InputError: nothing usable is there, or weights of another model family.
    """
    path = Path(config.init_from)
    if config.task not in FAMILIES and files.is_weights(path):
        raise only_workdirs(config.init_from)
    if path.exists() and files.is_weights(path):
        check_type(files.read_config(path), _wanted(config), path)
    files.check(config.init_from)


def only_workdirs(name: str) -> InputError:
    """Return the error of a task that no other library's weights fit."""
    return InputError(f"init_from: this task starts from workdirs alone, found {name}")


def check_type(config: Mapping[str, Any], wanted: str, path: Path) -> None:
    """Compare ``model_type`` of a config.json.

    Args:
      config: its content; without a model_type there is nothing to compare.
      wanted: family of the model; empty if unknown.
      path: of the weights, for the message.

    Raises:
      InputError: another family.
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
