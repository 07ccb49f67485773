"""Lock, config and data records of a workdir. Needs no jax."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import rdrop_jax
from rdrop_jax import config as config_lib
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, hub, paths
from rdrop_jax.files.disk import explained, open_regular, read_json, write_json

# Fields whose "auto" means the stored value if the run has checkpoints.
_KEPT = ("eval.bleu", "eval.rouge_tokenizer")
# Fields of the model that pretrained weights, or the run they come from, specify.
OF_WEIGHTS = (
    *("model.name", "model.layers", "model.encoder_layers", "model.decoder_layers"),
    *("model.width", "model.heads", "model.mlp_width", "model.patch_size"),
    *("model.vocab_size", "model.max_positions", "model.size", "model.share"),
    *("model.pre_norm", "model.positions", "model.activation"),
    *("model.pad_id", "model.position_buckets", "model.pooling"),
    *("model.global_every", "model.local_window", "model.conv_kernel"),
    *("model.global_theta", "model.local_theta"),
)
_INIT, _DATA = "init.json", "data.json"
_RESTORE = "Restore it from a copy, or use another workdir"
# Some network file systems have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Lock a workdir, created if absent; the kernel releases the lock on exit.

    Raises:
      InputError: another process has locked it; the message names the process.
    """
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open_regular(workdir / "lock", "a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"--workdir: expected {workdir} for this process alone, found "
                f"{file.read().strip() or 'another process'} training there"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _logger.warning(
                "%s cannot be locked (%s): start no second training there",
                workdir,
                error.strerror,
            )
        with explained(workdir):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def initialize(config: ConfigDict, workdir: Path) -> None:
    """Initialize the workdir, or check that its run was started with this config.

    Until the first checkpoint is saved, a different config replaces the stored one.

    Raises:
      InputError: the configs differ, with a list of fields, or the disk is not usable.
    """
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    check_config(config, workdir)
    written = {} if is_of_0_1(workdir) else {"version": rdrop_jax.__version__}
    write_json(workdir / "config.json", config.to_dict() | written)


def check_config(config: ConfigDict, workdir: Path) -> None:
    """Check that the run in the workdir, if any, was started with this config.

    Raises:
      InputError: the configs differ; the message lists the fields.
    """
    if has_checkpoint(workdir):
        lines = config_lib.differences(read(workdir), config)
        if lines:
            raise InputError(
                f"--workdir: {workdir} was started with a different config. Use "
                "another workdir, or the same values:\n  " + "\n  ".join(lines)
            )


def is_of_0_1(workdir: Path) -> bool:
    """Return True for a run with checkpoints that version 0.1 started."""
    return has_checkpoint(workdir) and "version" not in read_json(
        workdir / "config.json"
    )


def resumed(
    config: ConfigDict, workdir: Path, given: Collection[str] | None = None
) -> ConfigDict:
    """Return a config that takes values from the workdir for fields left at default.

    These are fields set to "auto", fields of the model that pretrained weights or
    ``model.size`` specify and, for a run started by version 0.1, fields whose defaults
    have changed.

    Args:
      config: config of the program.
      workdir: folder of the run; it may not contain one yet.
      given: fields that the command line sets; None if unknown.
    """
    if not has_checkpoint(workdir):
        return config
    stored, now = (config_lib.flatten(c) for c in (read(workdir), config))
    kept = {n: stored[n] for n in _KEPT if now.get(n) == "auto" and n in stored}
    if (
        given is not None
        and config.init_from
        and config.init_from == stored.get("init_from")
    ):
        unset = {*OF_WEIGHTS} & stored.keys() & now.keys() - {*given}
        kept |= {name: stored[name] for name in unset}
    if given is not None and "model.size" in given:  # replaced nothing before
        widths = {f"model.{name}" for name in config_lib.SIZES}
        kept |= {name: stored[name] for name in widths & stored.keys() - {*given}}
    if given is not None and is_of_0_1(workdir):
        fields = {*config_lib.NEW_DEFAULTS} - {*given}
        if any(hub.is_name(str(now.get(n))) for n in ("data.name", "init_from")):
            fields |= {*config_lib.NAMES} - {*given}
        old = {n: stored[n] for n in fields if n in stored and stored[n] != now.get(n)}
        for name, value in sorted(old.items()):
            _logger.warning("%s=%r, as version 0.1 started this run", name, value)
        kept |= old
    return _with_fields(config, kept)


def _with_fields(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    """Return a locked copy with other values of some fields, or the config if none."""
    if not fields:
        return config
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(fields)
    return config.lock()


def with_stored_splits(
    config: ConfigDict, workdir: Path, given: Collection[str] | None = None
) -> ConfigDict:
    """Leave out splits of a named dataset that a run was started without.

    Earlier versions did not find all of them.

    Args:
      config: config with names of splits in ``data.files``.
      workdir: folder of the run; it may not contain one yet.
      given: fields that the command line sets; None if unknown.
    """
    if not has_checkpoint(workdir):
        return config
    stored, now = (config_lib.flatten(c) for c in (read(workdir), config))
    fields = {"data.files.validation", "data.files.test"} - {*(given or ())}
    absent = {n: "" for n in fields if now.get(n) and stored.get(n) == ""}
    return _with_fields(config, absent)


def has_checkpoint(workdir: Path) -> bool:
    """Return whether the workdir has a completed checkpoint."""
    return not checksums.none_complete(workdir / "checkpoints")


def record_data(found: Mapping[str, str], workdir: Path) -> None:
    """Record the data checksums, or check that a resumed run has the same data.

    Args:
      found: names to checksums, as the task reports them.
      workdir: folder of the run.

    Raises:
      InputError: the data differ; the message lists the differences.
    """
    stored = _aligned(recorded_data(workdir), found)
    lines = [
        f"{name}: stored {stored.get(name, 'none')}, now {found.get(name, 'none')}"
        for name in sorted(stored.keys() | found.keys())
        if stored.get(name) != found.get(name)
    ]
    if stored and lines:
        raise InputError(
            f"--workdir: {workdir} was started with different data. Restore the "
            "data, or use another workdir:\n  " + "\n  ".join(lines)
        )
    write_json(workdir / _DATA, dict(found))


def recorded_data(workdir: Path | None) -> dict[str, str]:
    """Return data checksums by name; empty if the run has no completed checkpoint."""
    if workdir is None or not (workdir / _DATA).exists() or not has_checkpoint(workdir):
        return {}
    with contextlib.suppress(InputError):  # corrupt: `record_data` writes it again
        return {name: str(sum) for name, sum in read_json(workdir / _DATA).items()}
    return {}


def recorded_commit(config: ConfigDict, workdir: Path | None) -> str:
    """Return the commit of the Hub's dataset that a run was started with.

    Returns:
      The commit; "" if the run has no completed checkpoint or another dataset.
    """
    return recorded_data(workdir).get(config.data.name, "")


def changed_files(
    recorded: Mapping[str, str], found: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of ``found`` that are recorded with another checksum."""
    sums = _aligned(recorded, found)
    return tuple(name for name, sum in found.items() if sums.get(name, sum) != sum)


def _aligned(recorded: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Return recorded checksums under the names that ``found`` has for the files.

    Version 0.1 recorded names without folders, or full paths. Of files with one name in
    several folders it recorded one: the others count as unchanged.
    """
    aligned: dict[str, str] = {}
    for stored, digest in recorded.items():
        names = _present_names(stored, recorded, found)
        if any(found[name] == digest for name in names):
            aligned |= {name: found[name] for name in names}
        else:
            for name in names or [stored]:
                aligned.setdefault(name, digest)
    return aligned


def _present_names(
    stored: str, recorded: Collection[str], found: Collection[str]
) -> list[str]:
    """Return the names in ``found`` of a recorded file: equal, or else ends of it."""
    if stored in found:
        return [stored]
    new = [name for name in found if name not in recorded]
    ends = [name for name in new if stored.endswith(f"/{name}")]
    return ends or [name for name in new if Path(name).name == Path(stored).name]


def check_unchanged(
    recorded: Mapping[str, str], found: Mapping[str, str], field: str
) -> None:
    """Check that held-out rows are split off from the training data of the run.

    Changed data give a different split, with rows that the model was trained on.

    Args:
      recorded: names to checksums, as `recorded_data` returns them.
      found: names to checksums of the present training data.
      field: config field, for messages.

    Raises:
      InputError: data have changed; the message names them.
    """
    for name in changed_files(recorded, found):
        raise InputError(
            f"{field}: expected the training data of the run to hold rows out of, "
            f"found that {name} has changed. Restore the data, or score a separate "
            "file or folder"
        )


def record_init(
    workdir: Path, name: str, sha256: Mapping[str, str], commit: str = ""
) -> None:
    """Record the source of the initial parameters, for result.json of a resumed run."""
    at = {"commit": commit} if commit else {}
    write_json(workdir / _INIT, {"from": name, **at, "sha256": dict(sha256)})


def recorded_init(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Return the record of `record_init`; None if the run started from scratch."""
    path = workdir / _INIT
    if not config.init_from or not path.exists():
        return None
    try:
        return read_json(path)
    except InputError:  # corrupt; the result still names the source
        return {"from": config.init_from}


def read(workdir: Path) -> ConfigDict:
    """Return the stored config, locked.

    Raises:
      InputError: the config file is absent, unreadable or invalid.
    """
    paths.workdir(workdir)
    path = workdir / "config.json"
    if not os.path.lexists(path) and not has_checkpoint(workdir):
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
    stored.pop("version", None)
    config = ConfigDict(stored)
    try:
        config_lib.upgrade(config)
    except InputError as error:
        raise InputError(f"--workdir: {path}: {error}. {_RESTORE}") from error
    return config.lock()


def stored_result(path: Path) -> dict[str, Any] | None:
    """Return the result of an earlier start; None if absent or invalid."""
    if not path.exists():
        return None
    try:
        result = read_json(path)
    except InputError as error:
        _logger.info("%s. Making it again", error)
        return None
    if type(result.get("step")) is not int:
        found = f"{result.get('step', 'none')!r:.40}"
        _logger.info("%s: expected a step, found %s. Making it again", path, found)
        return None
    return result


def split_checkpoint(name: str) -> tuple[Path, str]:
    """Split ``WORKDIR[:CHECKPOINT]`` into path and checkpoint, "best" by default."""
    path, colon, checkpoint = name.rpartition(":")
    if colon and (is_number(checkpoint) or checkpoint in ("best", "last")):
        return Path(path), checkpoint
    return Path(name), "best"


def is_number(text: str) -> bool:
    """Return whether a text is an integer of at most 18 ASCII digits."""
    return text.isascii() and text.isdecimal() and len(text) <= 18
