"""Model families that each task can be initialized from. Does not import jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.files import hub as hub_names
from rdrop_jax.pretrained import hub, weight_files

# Values of model_type in config.json that each task reads.
Families = Mapping[str, tuple[str, ...]]


def check(
    config: ConfigDict, families: Families, workdir: Path | None = None
) -> ConfigDict:
    """Check ``init_from`` of a config by headers and sizes, before importing jax.

    Args:
      config: config of the run.
      families: model families by task.
      workdir: folder of the run, see `hub.located`.

    Returns:
      The config, with the folder of downloaded weights for a name of the Hub.

    Raises:
      InputError: the weights are missing, invalid, or of another model family.
    """
    name = config.init_from
    named = hub_names.is_name(name)
    if config.task not in families and (named or weight_files.is_weights(Path(name))):
        raise only_workdirs(name)
    local = hub.located(config, workdir)
    path = Path(local.init_from)
    if path.exists() and weight_files.is_weights(path):
        _check_type(weight_files.read_config(path), config, families)
    weight_files.check(local.init_from)
    return local


def only_workdirs(name: str) -> InputError:
    """Return the error of a task that only supports weights from workdirs."""
    return InputError(f"init_from: expected a workdir for this task, found {name}")


def _check_type(
    found: Mapping[str, Any], config: ConfigDict, families: Families
) -> None:
    own, model_type = families[config.task], found.get("model_type")
    name = config.model.name
    wanted = own[0] if len(own) == 1 else name if name in own else ""
    if model_type is None or not wanted or model_type == wanted:
        return
    known = "; ".join(f"{task}: {', '.join(types)}" for task, types in families.items())
    remedy = f"Families that can be read: {known}."
    if model_type in own:
        remedy = f"Use a preset with model.name={model_type}, or weights of {wanted}."
    raise InputError(
        f"init_from: {config.init_from}: model_type of config.json: expected {wanted}, "
        f"got {model_type!r}. {remedy}"
    )
