"""Command line of all programs: --config FILE[:PRESET] and config overrides."""

import argparse
import ast
import difflib
import functools
import logging
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict, FieldReference

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import checks
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths
from rdrop_jax.training import workdir as workdir_lib

_logger = logging.getLogger(__name__)

# Names in other libraries for the number of epochs.
_EPOCHS = ("epochs", "num_epochs", "num_train_epochs", "max_epochs")
_SET_EPOCHS = ' Set --config.total_steps="10 epochs".'


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `InputError` instead of exiting."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def path(text: str) -> Path:
    """Parse and check a path argument; for use as argparse's ``type``."""
    if problem := paths.problem(text):
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def parse(
    parser: Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Split a command line into a program's own flags and config overrides.

    Args:
      parser: parser with the program's own flags.
      argv: arguments without the program's name.

    Returns:
      The flags, and ``{"rdrop.alpha": "0"}`` from ``--config.rdrop.alpha=0``.

    Raises:
      InputError: an argument that is neither.
    """
    args, rest = parser.parse_known_args(argv)
    overrides: dict[str, str] = {}
    rest = list(rest)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise InputError(f"unexpected argument {word!r}.{_meant(parser, name)}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{name}: expected a value, found none")
            value = rest.pop(0)
        overrides[name.removeprefix("--config.")] = value
    return args, overrides


def _are_epochs(name: str) -> bool:
    return name.lstrip("-").rsplit(".", 1)[-1].replace("-", "_") in _EPOCHS


def _meant(parser: Parser, name: str) -> str:
    """Suggest a flag or config field with a name similar to ``name``."""
    if not name.startswith("-"):
        return ""
    known = {o for a in parser._actions for o in a.option_strings} - {"-h", "--help"}
    hint = config_lib.suggest(name, sorted(known))
    if "--config" in known and _are_epochs(name):
        return _SET_EPOCHS
    if hint or "--config" not in known:
        return hint
    fields = [f"--config.{k}" for k in config_lib.flatten(config_lib.base_config())]
    return config_lib.suggest(name.lstrip("-"), fields)


def parse_plain(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a program that accepts no config overrides."""
    args, overrides = parse(parser, argv)
    for name in overrides:
        raise InputError(f"--config.{name}: the config of a run is in its workdir")
    return args


def add_workdirs(parser: Parser) -> None:
    """Add ``--workdir`` of programs that average several runs."""
    parser.add_argument(
        "--workdir",
        type=path,
        required=True,
        nargs="+",
        action="extend",
        help="folder of a run; answers of several runs are averaged",
    )


def parse_run(
    parser: Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parse the command line of a program that reads the config from ``--workdir``.

    Args:
      parser: parser with the flag of `add_workdirs`.
      argv: arguments without the program's name.

    Returns:
      The flags and the config of the first run. Overrides may set fields of ``eval``
      and ``mesh``, which affect scoring and prediction but no parameters, and
      ``data.dir``, in case the data have moved.

    Raises:
      InputError: the workdir contains no run, or an override sets a different field.
    """
    args, overrides = parse(parser, argv)
    for name in overrides:
        if not name.startswith(("eval.", "mesh.")) and name != "data.dir":
            raise InputError(
                f"--config.{name}: the config of a run is in its workdir; only fields "
                "of eval and mesh, and data.dir may be set"
            )
    config, *_ = map(workdir_lib.read, args.workdir)
    if overrides:
        override(config, overrides)
        checks.check_values(config)
    return args, config


def load(spec: str, overrides: dict[str, str]) -> ConfigDict:
    """Load ``FILE[:PRESET]`` and apply overrides.

    A file that defines ``build(config)`` is also the task, unless its config names one.
    If ``init_from`` is empty, the preset's entry in the file's ``SCRATCH``, if any,
    replaces defaults by those of a model suited to training from scratch. An override
    of ``model.size`` replaces the depths and widths of the preset.

    Args:
      spec: path of a file with ``get_config(preset)``; relative to the current folder,
        else to the configs that the package ships.
      overrides: field name to text.

    Returns:
      The checked, locked config.

    Raises:
      InputError: a missing file, unknown preset or field, or a value of the wrong type.
    """
    paths.local("--config", spec)
    path, _, preset = spec.partition(":")
    file = find_file(path)
    module = tasks.load_file("--config", file)
    if not hasattr(module, "get_config"):
        raise InputError(f"--config: {path} has no function get_config(preset)")
    config = module.get_config(preset) if preset else module.get_config()
    if not config.task and hasattr(module, "build"):
        config.task = os.path.relpath(file)
    _warn(f"--config {path}: ", config_lib.upgrade(config))
    scratch, notes = config_lib.renamed(
        config.task, getattr(module, "SCRATCH", {}).get(preset, {})
    )
    _warn(f"--config {path}: SCRATCH: ", notes)
    given, notes = config_lib.renamed(config.task, overrides)
    _warn("--config.", notes)
    if scratch and not given.get("init_from", config.init_from):
        config.update_from_flattened_dict(scratch)
    if "model.size" in given:
        unset = [n for n in config_lib.SIZES if _is_optional(config.model, n)]
        config.update_from_flattened_dict({f"model.{n}": None for n in unset})
    override(config, given)
    checks.check_sizes(config, given)
    checks.check_values(config)
    return config


def _warn(prefix: str, notes: Iterable[str]) -> None:
    for note in notes:
        _warn_once(prefix + note)


@functools.cache  # a comparison loads its config many times
def _warn_once(message: str) -> None:
    _logger.warning("%s", message)


def find_file(path: str) -> Path:
    """Return the path of a config file, also of one that the package ships."""
    here = Path(__file__).resolve().parents[1]
    shipped = [here / "configs", here.parent / "configs"]
    tried = [Path(path)]
    if Path(path).parent in (Path(), Path("configs")):
        tried += [folder / Path(path).name for folder in shipped]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    names = sorted({f.name for d in shipped if d.is_dir() for f in d.glob("[a-z]*.py")})
    close = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise InputError(f"--config: no file {path!r}.{hint} Shipped: {', '.join(names)}")


def override(config: ConfigDict, overrides: dict[str, str]) -> None:
    """Set fields from text, keeping each field's type.

    Raises:
      InputError: an unknown field, a group of fields, or a value of the wrong type.
    """
    known = config_lib.flatten(config)
    groups = {
        ".".join(parts[:i])
        for parts in (name.split(".") for name in known)
        for i in range(1, len(parts))
    }
    for name, text in overrides.items():
        if name in groups:
            inside = [k for k in known if k.startswith(name + ".")]
            raise InputError(
                f"--config.{name} is a group: expected one of its fields, "
                f"{', '.join(inside)}"
            )
        if name not in known:
            hint = _SET_EPOCHS if _are_epochs(name) else config_lib.suggest(name, known)
            raise InputError(f"--config.{name}: no such field.{hint}")
        *parents, leaf = name.split(".")
        group = functools.reduce(operator.getitem, parents, config)
        value = parse_value(
            name, text, group.get_type(leaf), optional=_is_optional(group, leaf)
        )
        config.update_from_flattened_dict({name: value})


def _is_optional(group: ConfigDict, name: str) -> bool:
    """Return whether a field may be None, also where a preset gives it a value.

    A field that ``get_ref`` shares counts as optional too.
    """
    field = dict(group.items(preserve_field_references=True)).get(name, 0)
    return field is None or isinstance(field, FieldReference)


def parse_value(name: str, text: str, kind: type, *, optional: bool = False) -> Any:
    """Parse text as a value of a field's type.

    Args:
      name: name of the field, for messages.
      text: text from the user.
      kind: bool, int, float, str, tuple; object for a duration.
      optional: True if the field also accepts "none".

    Returns:
      The value.

    Raises:
      InputError: the text is not a value of that type.
    """
    if kind is str:
        return text
    if name in config_lib.DURATIONS:
        return int(text) if workdir_lib.is_number(text) else text
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"--config.{name}: expected true or false, found {text!r}")
        return text.lower() in ("true", "1")
    if optional and text.lower() == "none":
        return None
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            wanted = "an integer" if kind is int else "a number"
            raise InputError(
                f"--config.{name}: expected {wanted}, found {text!r}"
            ) from None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if kind is tuple and isinstance(value, list):  # as `show` prints tuples
        value = tuple(value)
    if name == "log.trackers" and isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    if not isinstance(value, kind):
        raise InputError(f"--config.{name}: expected a {kind.__name__}, found {text!r}")
    return value


def show(config: ConfigDict) -> str:
    """Format a config as one ``name = value`` line per field; truncate long lists."""

    def text(value: Any) -> str:
        if isinstance(value, list) and len(value) > 10:
            return f"{value[:3]!r} and {len(value) - 3} more"
        return repr(value)

    return "\n".join(
        f"  {k} = {text(v)}" for k, v in config_lib.flatten(config).items()
    )
