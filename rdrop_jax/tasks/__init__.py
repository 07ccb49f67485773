"""One builder per family, in an explicit dict."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.tasks import image_classification, text_classification
from rdrop_jax.tasks.base import Task

# Of a config and the workdir of the run, which keeps its vocabulary; None keeps none.
BUILDERS: dict[str, Callable[[ConfigDict, Path | None], Task]] = {
    "image_classification": lambda config, workdir: image_classification.build(config),
    "text_classification": text_classification.build,
}


def build(config: ConfigDict, workdir: Path | None = None) -> Task:
    """The task that ``config.task`` names, of the run in a workdir."""
    if config.task not in BUILDERS:
        raise InputError(
            f"task: expected one of {', '.join(BUILDERS)}, found {config.task!r}"
        )
    return BUILDERS[config.task](config, workdir)
