"""The task and shapes of training batches, from the config alone."""

from ml_collections import ConfigDict

from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.image_classification.task import build
from rdrop_jax.training.task import Task


def abstract(config: ConfigDict) -> tuple[Task, Shapes]:
    """Build the task without its data, and describe a training batch.

    Args:
      config: resolved config; ``data.num_classes`` 0 becomes 2.

    Returns:
      The task, and shape and dtype of each array of a batch.
    """
    config = config.copy_and_resolve_references().unlock()
    data, rows = config.data, config.batch_size
    data.num_classes = data.num_classes or 2
    image = (rows, data.image_size, data.image_size, data.channels)
    return build(config), {"image": (image, "f4"), "label": ((rows,), "i4")}
