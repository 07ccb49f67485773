"""The task and shapes of training batches, from the config alone."""

from ml_collections import ConfigDict

from rdrop_jax.tasks.field_checks import Shapes
from rdrop_jax.tasks.text_classification.task import build
from rdrop_jax.training.task import Task


def abstract(config: ConfigDict) -> tuple[Task, Shapes]:
    """Build the task without its data, and describe a batch of the longest texts.

    Args:
      config: resolved config; without class names there are two classes.
    """
    config = config.copy_and_resolve_references().unlock()
    data, rows = config.data, config.batch_size
    # The names of the splits are not used, but must not be looked up.
    data.files.train = data.files.train or "train"
    if data.labels != "numbers" and not data.classes:
        data.classes = ("a", "b")
    time = (rows, data.max_length)
    per_token = {"where": (time, "b1"), "labelled": (time, "f4")}
    outputs = {
        "words": (time, "i4"),
        "classes": ((rows,), "i4"),
        "numbers": ((rows,), "f4"),
        "multilabel": ((rows, len(data.classes)), "f4"),
    }
    return build(config), {
        "tokens": ((rows, data.max_length), "i4"),
        "types": ((rows, data.max_length), "i4"),
        "length": ((rows,), "i4"),
        "label": outputs[data.labels],
        "labelled": ((rows,), "f4"),
    } | (per_token if data.labels == "words" else {})
