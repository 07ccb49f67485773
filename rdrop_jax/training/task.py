"""Interface between tasks and the training loop."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.passes import Forward, Key, Params, View
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.pretrained.initialize import Family
from rdrop_jax.training.mesh import Rules

# ``params -> scores`` of one split.
Evaluator = Callable[[Params], dict[str, float]]
# ``(params, key | None) -> arrays [examples, ...]`` of one split: every score that the
# evaluator averages over examples, and "log_probs" [examples, classes] for tasks with
# classes. A key turns dropout on, which samples one sub-model.
ExampleScores = Callable[[Params, Key | None], dict[str, np.ndarray]]


@runtime_checkable
class RandomAccess(Protocol):
    """Training data whose batch t is a pure function of (seed, t).

    Attributes:
      steps_per_epoch: number of batches that contain every example once.
      examples_per_step: mean number of examples per batch.
    """

    steps_per_epoch: float
    examples_per_step: float

    def __getitem__(self, step: int) -> HostBatch: ...


@dataclass(frozen=True)
class Predictor:
    """Prediction of a task for unlabelled inputs.

    Attributes:
      read: ``path -> inputs`` of a file ("-" for standard input).
      rows: ``split -> inputs`` of the dataset.
      run: ``(params, inputs) -> answers`` in order, as JSON-ready dicts.
      text: ``answer -> line`` of plain text; None if answers are only given as JSON.
    """

    read: Callable[[str], Iterable[Any]]
    rows: Callable[[str], Iterable[Any]]
    run: Callable[[Params, Iterable[Any]], Iterator[dict[str, Any]]]
    text: Callable[[dict[str, Any]], str] | None = None


@dataclass(frozen=True)
class Averaging:
    """Average of the outputs of several runs.

    Attributes:
      mean: ``outputs stacked over runs [runs, ...] -> outputs``, in the form of those
        of one run.
      shared: values by name that all runs must have, such as the classes and the
        preprocessing.
      drawn: splits whose rows the config draws; a run with another ``data.split_seed``
        is trained on them.
    """

    mean: Callable[[jax.Array], jax.Array]
    shared: Callable[[], Mapping[str, Any]]
    drawn: Callable[[], Collection[str]]


@dataclass(frozen=True)
class StepOptions:
    """Options of the train step that few tasks need.

    Attributes:
      forwards: one forward per pass; empty if all passes run `Task.forward`.
      views: augmentation of the inputs of each pass; see `rdrop_jax.forward_passes`.
      out_axes: axes along which `forward_passes` stacks the passes.
      sharded_loss: ``mesh -> loss`` for several devices; None if the compiler can
        shard `Task.loss`.
      partition_rules: sharding rules of the parameters over the tensor axis.
    """

    forwards: tuple[Forward, ...] = ()
    views: View | tuple[View, ...] | None = None
    out_axes: Any = 0
    sharded_loss: Callable[[Mesh], Loss] | None = None
    partition_rules: Rules = ()


@dataclass(frozen=True)
class Report:
    """Content of the log and of result.json that a task adds.

    Attributes:
      size: ``split -> number of rows or tokens`` of "train" and of every split that the
        run scores, for the log: "1,437 rows".
      notes: messages to the user about the training data, one line each.
      signatures: description of the scores and of the batches for result.json, called
        at the end of a run; a run may resume with different ones, such as after a
        package update.
      samples: ``mesh -> params -> lines`` to log at the end.
    """

    size: Callable[[str], str] | None = None
    notes: Callable[[], Iterable[str]] = tuple
    signatures: Callable[[], dict[str, str]] = dict
    samples: Callable[[Mesh], Callable[[Params], list[str]]] | None = None


@dataclass(frozen=True)
class Task:
    """Pure functions and data of one task.

    Training needs the first six fields. `rdrop_jax.compare` uses ``examples``,
    `rdrop_jax.predict` the predictor, `rdrop_jax.export` and ``init_from`` the family.

    Attributes:
      init: ``key -> params``.
      forward: ``(params, batch, key | None) -> outputs``.
      loss: ``(outputs stacked over passes, batch, **objective) -> (scalar, metrics)``,
        as expected by `rdrop_jax.make_train_step`.
      train_data: training batches; called only for training, and read once.
      scores: names of the evaluators' scores, from which ``eval.metric`` selects.
      evaluators: ``split -> mesh -> evaluator``; making one reads the data. All but
        "train", and tests if ``eval.test`` is False, are made before the first step.
      provenance: description of the data, mainly checksums. A run resumes only with
        the same one.
      examples: ``split -> mesh -> scores per example``; empty if scores are only
        defined for a corpus.
      predictor: ``mesh -> predictor``; None if unsupported.
      pretrained: import and export of parameters in formats of other libraries; None
        if unsupported.
      averaging: average of several runs, for which ``rdrop_jax.tasks.build`` takes
        ``averaged``; None if unsupported.
      step: options of the train step.
      report: content of the log and of result.json.
      generates: whether evaluators generate text, which is too slow for all training
        data.
    """

    init: Callable[[Key], Params]
    forward: Forward
    loss: Loss
    train_data: Callable[[], RandomAccess]
    scores: tuple[str, ...]
    evaluators: Mapping[str, Callable[[Mesh], Evaluator]]
    provenance: Callable[[], dict[str, str]] = dict
    examples: Mapping[str, Callable[[Mesh], ExampleScores]] = field(
        default_factory=dict
    )
    predictor: Callable[[Mesh], Predictor] | None = None
    pretrained: Family | None = None
    averaging: Averaging | None = None
    step: StepOptions = StepOptions()
    report: Report = Report()
    generates: bool = False
