"""The eight GLUE tasks of the paper: columns, classes and splits.

Columns are those of ``hf:nyu-mll/glue/TASK`` and of ``tfds:glue/TASK``. Runs of version
0.1 resume from the folders ``DATA_DIR/glue/TASK`` that its program prepared.
"""

from dataclasses import dataclass

from rdrop_jax.data import catalogue

PREFIX = "glue/"
HUB = "hf:nyu-mll/glue/"


@dataclass(frozen=True)
class GlueTask:
    """Columns, classes and splits of a task.

    Attributes:
      text: column of the text, or of the first text of a pair.
      text_b: column of the second text; empty for single texts.
      classes: class names by id; empty for numeric labels.
      splits: names of the labelled splits.
    """

    text: str
    text_b: str
    classes: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "validation")


_ENTAILED = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")
TASKS: dict[str, GlueTask] = {
    "cola": GlueTask("sentence", "", ("unacceptable", "acceptable")),
    "sst2": GlueTask("sentence", "", ("negative", "positive")),
    "mrpc": GlueTask("sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "qqp": GlueTask("question1", "question2", ("not_duplicate", "duplicate")),
    "stsb": GlueTask("sentence1", "sentence2", ()),
    "mnli": GlueTask(
        "premise",
        "hypothesis",
        _MNLI,
        ("train", "validation", "validation_mismatched"),
    ),
    "qnli": GlueTask("question", "sentence", _ENTAILED),
    "rte": GlueTask("sentence1", "sentence2", _ENTAILED),
}


def task_of(name: str) -> str:
    """Return ``cola`` for ``glue/cola`` and ``tfds:glue/cola:2.0.0``; else ""."""
    name, _, _ = name.removeprefix(catalogue.PREFIX).partition(":")
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
