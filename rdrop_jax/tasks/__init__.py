"""Registry of tasks. Importing it needs no jax."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError

if TYPE_CHECKING:  # imports jax
    from rdrop_jax.training.task import Task

# Packages by name of the task. A package has no import of jax and defines
#   check_data(config, commit) -> config
#                             checks the training data, completes the config
#   FAMILIES                  values of model_type in config.json of readable weights
#   VIEWS                     values of rdrop.views, with their default rates, if any
#   RECIPES                   datasets that `rdrop_jax.prepare` converts, if any:
#                             name -> (prepare(folder, files), read_index(folder))
# and its module ``task``
#   build(config, workdir, resuming=...) -> rdrop_jax.training.task.Task
# and its module ``abstract``
#   abstract(config) -> the task without its data, and the shapes of a batch
#   abstract_decode(config)
#                    -> the same with a decoding function between, if it generates text
TASKS = {
    "image_classification": "rdrop_jax.tasks.image_classification",
    "text_classification": "rdrop_jax.tasks.text_classification",
    "translation": "rdrop_jax.tasks.translation",
    "summarization": "rdrop_jax.tasks.summarization",
    "language_model": "rdrop_jax.tasks.language_modeling",
}


def is_file(name: str) -> bool:
    """Return whether ``config.task`` names a Python file with the user's own task."""
    return name.endswith(".py")


def load_file(field: str, path: Path) -> ModuleType:
    """Import a Python file of the user.

    Args:
      field: config field or flag that names it, for messages.
      path: path of the file.

    Raises:
      InputError: not a Python file.
    """
    spec = importlib.util.spec_from_file_location(f"rdrop_jax_file_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        remedy = " Run the program in the folder of the first start."
        raise InputError(
            f"{field}: expected a Python file, found {str(path)!r}."
            + remedy * (field == "task")
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of annotations
    spec.loader.exec_module(module)
    return module


def package(name: str) -> ModuleType:
    """Import the package of a task.

    Raises:
      InputError: an unknown task.
    """
    if name not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}, found {name!r}")
    return importlib.import_module(TASKS[name])


def check_data(config: ConfigDict, commit: str = "") -> ConfigDict:
    """Check the training data of a config and fill in what follows from them.

    Args:
      config: config returned by `rdrop_jax.flags.load`.
      commit: commit of a dataset of the Hugging Face Hub; "" takes the newest.

    Returns:
      A locked copy, or the config itself if nothing is added.

    Raises:
      InputError: the training data are missing or do not fit the config.
    """
    if is_file(config.task):
        return config
    checked: ConfigDict = package(config.task).check_data(config, commit)
    return checked


def families() -> dict[str, tuple[str, ...]]:
    """Return the model families that each task reads and exports."""
    found = {name: package(name).FAMILIES for name in TASKS}
    return {name: types for name, types in found.items() if types}


def recipes() -> dict[str, tuple[Callable[..., Path], Callable[[Path], Any]]]:
    """Return the recipe of each dataset, and the reader of its prepared folder."""
    return {
        dataset: recipe
        for name in TASKS
        for dataset, recipe in getattr(package(name), "RECIPES", {}).items()
    }


def build(
    config: ConfigDict,
    workdir: Path | None = None,
    *,
    resuming: bool = True,
    **options: Any,
) -> "Task":
    """Build the task of a config: a name of this package, or a file of the user.

    Args:
      config: config of the run.
      workdir: folder of the run, with the files that the task keeps there, such as a
        vocabulary; None makes their content again, in memory.
      resuming: True if the run has checkpoints, which need the existing files. False
        writes the files, on process 0.
      options: ``averaged`` makes the forward of evaluation and prediction from the
        model's, for tasks with `rdrop_jax.training.task.Averaging`.

    Returns:
      The task.

    Raises:
      InputError: an unknown task, or ``rdrop.views`` or ``rdrop.dropouts`` for a file
        whose task does not apply them.
    """
    task: Task
    if is_file(config.task):
        task = load_file("task", Path(config.task)).build(config)
        check_applied(config, task)
        return task
    module = importlib.import_module(f"{package(config.task).__name__}.task")
    task = module.build(config, workdir, resuming=resuming, **options)
    return task


def check_applied(config: ConfigDict, task: "Task") -> None:
    """Check that a user's task applies the options that only a task can apply.

    Raises:
      InputError: ``rdrop.views`` or ``rdrop.dropouts`` without its StepOptions.
    """
    r = config.rdrop
    for field, value, unset, option, applied in (
        ("views", r.views, "none", "views", task.step.views is not None),
        ("dropouts", tuple(r.dropouts), (), "forwards", bool(task.step.forwards)),
    ):
        if value != unset and not applied:
            raise InputError(
                f"rdrop.{field}: expected {unset}, because the task of {config.task} "
                f"sets no {option} in StepOptions, got {value!r}"
            )


def abstract(
    config: ConfigDict,
) -> tuple["Task", dict[str, tuple[tuple[int, ...], str]]]:
    """Build a task without its data, and describe a batch of its training data.

    Args:
      config: resolved config of the run.

    Returns:
      The task, and shape and dtype of each array of a batch of the longest rows.

    Raises:
      InputError: a task from a file of the user.
    """
    module = _abstract_module(config)
    task, shapes = module.abstract(config)
    return task, shapes


def _abstract_module(config: ConfigDict) -> ModuleType:
    if is_file(config.task):
        raise InputError(
            f"--config: expected one of the tasks {', '.join(TASKS)}, whose batches "
            f"have known shapes, got {config.task}"
        )
    return importlib.import_module(f"{package(config.task).__name__}.abstract")


def abstract_decode(
    config: ConfigDict,
) -> tuple["Task", Callable[..., Any], dict[str, tuple[tuple[int, ...], str]]]:
    """Build a task without its data, and describe the decoding of a batch.

    Args:
      config: resolved config of the run.

    Returns:
      The task, ``(params, batch) -> tokens``, and shape and dtype of each array of a
      batch of the longest inputs.

    Raises:
      InputError: the task generates no text, or is from a file of the user.
    """
    module = _abstract_module(config)
    if not hasattr(module, "abstract_decode"):
        raise InputError(
            f"--step=decode: expected a task that generates text, got {config.task}. "
            "Use --step eval."
        )
    task, decode, shapes = module.abstract_decode(config)
    return task, decode, shapes
