"""What the loop sees of a task, and nothing else."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.passes import Forward, Key, Params
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.pretrained.merge import Family
from rdrop_jax.runtime.mesh import Rules

# Scores of some parameters on one split, as finished numbers.
Evaluator = Callable[[Params], dict[str, float]]
# ``(params, key | None) -> arrays [examples, ...]`` of one split: each score whose mean
# over examples is the evaluator's, and "log_probs" [examples, classes] where a task has
# classes. With a key dropout is on: one sub-model's answers.
ExampleScores = Callable[[Params, Key | None], dict[str, np.ndarray]]


@runtime_checkable
class RandomAccess(Protocol):
    """Batch t for every step t, a pure function of (seed, t).

    Attributes:
      steps_per_epoch: batches that hold every example once.
      examples_per_step: on average.
    """

    steps_per_epoch: float
    examples_per_step: float

    def __getitem__(self, step: int) -> HostBatch: ...


@dataclass(frozen=True)
class Predictor:
    """How a task answers for inputs that nobody has labelled.

    Attributes:
      read: file with inputs ("-" for standard input) to inputs.
      rows: inputs of one of the dataset's own splits.
      run: ``(params, inputs) -> answers`` in order, as JSON-ready dicts.
      text: an answer as one line of plain text; None where JSON says it best.
    """

    read: Callable[[str], Iterable[Any]]
    rows: Callable[[str], Iterable[Any]]
    run: Callable[[Params, Iterable[Any]], Iterator[dict[str, Any]]]
    text: Callable[[dict[str, Any]], str] | None = None


@dataclass(frozen=True)
class Task:
    """Pure callables and data.

    Attributes:
      init: ``key -> params``.
      forward: ``(params, batch, key | None) -> outputs``.
      pass_forwards: that of each pass of an R-Drop step; none where they are the same.
      loss: ``(outputs stacked over passes, batch, **objective) -> (scalar, metrics)``,
        as `rdrop_jax.make_train_step` takes it.
      sharded_loss: ``mesh -> loss`` on several devices; None where ``loss`` serves,
        which the compiler then cuts.
      out_axes: where `forward_passes` stacks the passes.
      train_data: the training batches; called only to train, read once.
      scores: names that evaluators return and ``eval.metric`` may choose.
      evaluators: ``split -> mesh -> evaluator``; data is read when one is made.
      predictor: ``mesh -> predictor``.
      examples: ``split -> mesh -> scores of each example``; empty where scores are of a
        corpus as a whole.
      partition_rules: how the tensor axis cuts the parameters.
      pretrained: how its parameters come from files of other libraries and go there;
        none where they do not.
      provenance: what result.json says of the data, checksums of embedded data above
        all.
      signatures: how scores are counted, for result.json beside it; a run goes on
        where they change, as with another version of a package.
      size: name of a split to its number of rows or tokens, for the log: "1,437 rows".
      notes: what was done to the training data, a line each, for the user.
      samples: ``mesh -> params -> lines`` to show at the end; None shows nothing.
    """

    init: Callable[[Key], Params]
    forward: Forward
    loss: Loss
    train_data: Callable[[], RandomAccess]
    scores: tuple[str, ...]
    evaluators: Mapping[str, Callable[[Mesh], Evaluator]]
    predictor: Callable[[Mesh], Predictor]
    examples: Mapping[str, Callable[[Mesh], ExampleScores]] = field(
        default_factory=dict
    )
    pass_forwards: Callable[[], tuple[Forward, ...]] = tuple
    sharded_loss: Callable[[Mesh], Loss] | None = None
    out_axes: Any = 0
    partition_rules: Rules = ()
    pretrained: Family | None = None
    provenance: Callable[[], dict[str, str]] = field(default=dict)
    signatures: Callable[[], dict[str, str]] = field(default=dict)
    size: Callable[[str], str] | None = None
    notes: Callable[[], tuple[str, ...]] = field(default=tuple)
    samples: Callable[[Mesh], Callable[[Params], list[str]]] | None = None
