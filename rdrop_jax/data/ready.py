"""Checks that the dataset exists, and config fields read from it. Needs no jax."""

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import image_sets, images
from rdrop_jax.tasks.language_modeling import running_text
from rdrop_jax.tasks.seq2seq import pair_sets
from rdrop_jax.tasks.summarization import summary_sets
from rdrop_jax.tasks.text_classification import text_sets


def completed(config: ConfigDict) -> ConfigDict:
    """Check the training data and fill in the class names and their number.

    The workdir stores them, so that prediction needs no dataset and a change of the
    classes between starts is detected.

    Args:
      config: config returned by `rdrop_jax.flags.load`.

    Returns:
      A locked copy, or the config itself if nothing is added.

    Raises:
      InputError: the training data are missing or have other classes.
    """
    if config.task == "translation":
        defaults = {"validation": "validation", "test": "test"}
        config = pair_sets.with_files(config, defaults)
        pair_sets.find(config.data).check()
    elif config.task == "summarization":
        defaults = {"validation": "validation.jsonl", "test": "test.jsonl"}
        config = pair_sets.with_files(config, defaults)
        summary_sets.find(config.data).check()
    elif config.task == "language_model":
        running_text.check(config.data)
    elif config.task == "text_classification":
        config = text_sets.completed(config)
        text_sets.check_training(config)
        return config
    if config.task != "image_classification":
        return config
    data = config.data
    images.check(data)
    if data.classes and data.num_classes:
        return config  # by an earlier call
    classes = image_sets.find(data).classes
    if not classes and not data.num_classes:
        raise InputError(
            f"data.num_classes: expected the number of classes, because {data.name} "
            "has no class names, found 0"
        )
    if classes and data.num_classes not in (0, len(classes)):
        raise InputError(
            f"data.num_classes: expected {len(classes)}, the number of classes of "
            f"{data.name}, found {data.num_classes}"
        )
    if not classes:
        return config
    filled = config.copy_and_resolve_references().unlock()
    filled.data.classes = classes
    filled.data.num_classes = len(classes)
    return filled.lock()
