"""The config that a workdir was begun with. Needs no jax."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.errors import InputError
from rdrop_jax.runtime.disk import explained, write_json


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir, or checks that it was begun with this config.

    As long as nothing is saved there, another config may take the place of the first.

    Raises:
      InputError: lists the fields that differ, or says why nothing can be written.
    """
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    check(config, workdir)
    write_json(workdir / "config.json", config.to_dict())


def check(config: ConfigDict, workdir: Path) -> None:
    """Checks that the workdir, if it holds a run, was begun with this config.

    Raises:
      InputError: lists the fields that differ.
    """
    if (workdir / "config.json").exists() and begun(workdir):
        lines = config_lib.differences(read(workdir), config)
        if lines:
            raise InputError(
                f"--workdir: {workdir} was begun with another config; take another "
                "workdir, or the same values:\n  " + "\n  ".join(lines)
            )


def begun(workdir: Path) -> bool:
    """Whether a checkpoint lies in the workdir."""
    return any(workdir.glob("checkpoints/step_*"))


def read(workdir: Path) -> ConfigDict:
    """The stored config, locked.

    Raises:
      InputError: there is none, or it is not readable.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"--workdir: no run in {workdir}: {path} does not exist")
    try:
        return ConfigDict(json.loads(path.read_text())).lock()
    except json.JSONDecodeError as error:
        raise InputError(f"--workdir: {path} is not JSON: {error}") from error
