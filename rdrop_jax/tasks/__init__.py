"""One builder per family, in an explicit dict."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.tasks import image_classification
from rdrop_jax.tasks.base import Task

BUILDERS: dict[str, Callable[[ConfigDict], Task]] = {
    "image_classification": image_classification.build,
}


def build(config: ConfigDict) -> Task:
    """The task that ``config.task`` names."""
    if config.task not in BUILDERS:
        raise InputError(
            f"task: expected one of {', '.join(BUILDERS)}, found {config.task!r}"
        )
    return BUILDERS[config.task](config)
