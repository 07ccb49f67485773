"""Registry of tasks: one builder per task."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ml_collections import ConfigDict

from rdrop_jax.core.objective import resolve_num_passes
from rdrop_jax.core.passes import Forward
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import task as image_classification
from rdrop_jax.tasks.language_modeling import task as language_model
from rdrop_jax.tasks.summarization import task as summarization
from rdrop_jax.tasks.text_classification import task as text_classification
from rdrop_jax.tasks.translation import task as translation
from rdrop_jax.training.task import Task

BUILDERS: dict[str, Callable[[ConfigDict, Path | None], Task]] = {
    "image_classification": image_classification.build,
    "language_model": language_model.build,
    "translation": translation.build,
    "summarization": summarization.build,
    "text_classification": text_classification.build,
}


class Prepare(Protocol):
    """Function that writes the files a run needs to its workdir before step 1."""

    def __call__(self, config: ConfigDict, workdir: Path, *, begun: bool) -> None: ...


PREPARE: dict[str, Prepare] = {
    "language_model": language_model.prepare,
    "summarization": summarization.prepare,
    "text_classification": text_classification.prepare,
    "translation": translation.prepare,
}


def build(config: ConfigDict, workdir: Path | None = None) -> Task:
    """Build the task that ``config.task`` names.

    Args:
      config: config of the run.
      workdir: folder with the files written by `prepare`; None makes them again.

    Returns:
      The task.
    """
    if config.task not in BUILDERS:
        raise InputError(
            f"task: expected one of {', '.join(BUILDERS)}, found {config.task!r}"
        )
    builder = BUILDERS[config.task]

    def forward_at(dropout: float) -> Forward:
        other = config.copy_and_resolve_references()
        other.model.dropout = dropout
        return builder(other, workdir).forward

    def pass_forwards() -> tuple[Forward, ...]:
        r = config.rdrop
        if resolve_num_passes(r.alpha, r.num_passes) == 1:
            return ()
        return tuple(forward_at(float(rate)) for rate in r.dropouts)

    return replace(builder(config, workdir), pass_forwards=pass_forwards)


def prepare(config: ConfigDict, workdir: Path, *, begun: bool) -> None:
    """Write the files that the task keeps in the workdir, such as a vocabulary.

    Args:
      config: config of the run.
      workdir: folder of the run.
      begun: True if the run has checkpoints, which need the existing files.
    """
    if config.task in PREPARE:
        PREPARE[config.task](config, workdir, begun=begun)
