"""The config that a workdir was begun with. Needs no jax."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.errors import InputError
from rdrop_jax.runtime import paths, seal
from rdrop_jax.runtime.disk import explained, read_json, write_json

# Fields whose "auto" means, for a run with checkpoints, the value that it has.
_KEPT = ("eval.bleu", "eval.rouge_tokenizer")
_INIT, _DATA = "init.json", "data.json"
_RESTORE = "Restore it from a copy, or use another workdir"


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
    if begun(workdir):
        lines = config_lib.differences(read(workdir), config)
        if lines:
            raise InputError(
                f"--workdir: {workdir} was begun with another config; take another "
                "workdir, or the same values:\n  " + "\n  ".join(lines)
            )


def resumed(config: ConfigDict, workdir: Path) -> ConfigDict:
    """Return a config with the workdir's values of fields that are "auto" in it.

    Args:
      config: of the program.
      workdir: of a run, or of none yet.
    """
    if not begun(workdir):
        return config
    stored, now = (config_lib.flatten(c) for c in (read(workdir), config))
    kept = {n: stored[n] for n in _KEPT if now.get(n) == "auto" and n in stored}
    if not kept:
        return config
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(kept)
    return config.lock()


def begun(workdir: Path) -> bool:
    """Whether a checkpoint was finished in the workdir."""
    return not seal.only_unfinished(workdir / "checkpoints")


def claim_data(found: Mapping[str, str], workdir: Path) -> None:
    """Keeps what the data are, or checks that a run goes on with the same.

    Args:
      found: names to checksums, as the task tells them.
      workdir: of the run.

    Raises:
      InputError: lists what differs.
    """
    stored = recorded_data(workdir)
    lines = [
        f"{name}: there {stored.get(name, 'none')}, now {found.get(name, 'none')}"
        for name in sorted(stored.keys() | found.keys())
        if stored.get(name) != found.get(name)
    ]
    if stored and lines:
        raise InputError(
            f"--workdir: {workdir} was begun with other data; put those back, or take "
            "another workdir:\n  " + "\n  ".join(lines)
        )
    write_json(workdir / _DATA, dict(found))


def recorded_data(workdir: Path | None) -> dict[str, str]:
    """Return names and checksums of the data of a run; empty if it has not started."""
    if workdir is None or not (workdir / _DATA).exists() or not begun(workdir):
        return {}
    with contextlib.suppress(InputError):  # damaged: `claim_data` writes it again
        return {name: str(sum) for name, sum in read_json(workdir / _DATA).items()}
    return {}


def check_unchanged(
    recorded: Mapping[str, str], found: Mapping[str, str], field: str
) -> None:
    """Refuse to hold rows out of training data that are not those of the run.

    Other rows would be drawn, and the model has seen some of them in training.

    Args:
      recorded: names to checksums, as `recorded_data` returns them.
      found: the same of the training data that are there. Folders of the names do not
        count, because data may move.
      field: of the config, for messages.

    Raises:
      InputError: names the data that have changed.
    """
    sums = {Path(name).name: sum for name, sum in recorded.items()}
    for name, sum in found.items():
        if sums.get(Path(name).name, sum) != sum:
            raise InputError(
                f"{field}: expected the training data of the run to hold rows out of, "
                f"found that {name} has changed. Restore the data, or score a separate "
                "file or folder"
            )


def record_init(workdir: Path, name: str, sha256: Mapping[str, str]) -> None:
    """Keeps what the parameters came from, for the result of a run that is resumed."""
    write_json(workdir / _INIT, {"from": name, "sha256": dict(sha256)})


def recorded_init(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """What `record_init` kept; none where the run began with random parameters."""
    path = workdir / _INIT
    if not config.init_from or not path.exists():
        return None
    try:
        return read_json(path)
    except InputError:  # damaged; the result still names the source
        return {"from": config.init_from}


def read(workdir: Path) -> ConfigDict:
    """The stored config, locked.

    Raises:
      InputError: there is none, or it is not readable.
    """
    paths.workdir(workdir)
    path = workdir / "config.json"
    if not os.path.lexists(path) and not begun(workdir):
        raise InputError(f"--workdir: no run in {workdir}: {path} does not exist")
    try:
        stored = read_json(path)
    except InputError as error:
        raise InputError(f"--workdir: {error}. {_RESTORE}") from error
    if problem := config_lib.unlike_base(stored):
        raise InputError(
            f"--workdir: {path}: expected the config of a run, found {problem}. "
            f"{_RESTORE}"
        )
    return ConfigDict(config_lib.upgraded(stored)).lock()


def split_checkpoint(name: str) -> tuple[Path, str]:
    """``WORKDIR`` or ``WORKDIR:CHECKPOINT`` to both; the best where none is named."""
    path, colon, checkpoint = name.rpartition(":")
    if colon and (is_number(checkpoint) or checkpoint in ("best", "last")):
        return Path(path), checkpoint
    return Path(name), "best"


def is_number(text: str) -> bool:
    """Return whether a text is a whole number in ASCII digits, at most 18 of them."""
    return text.isascii() and text.isdecimal() and len(text) <= 18
