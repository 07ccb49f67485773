"""Read access to a finished or running run."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import tasks
from rdrop_jax.core.passes import Params
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.pretrained import families, weight_files
from rdrop_jax.pretrained.initialize import Weights, flatten, merge
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.checkpoint import Checkpoints
from rdrop_jax.training.mesh import make_mesh
from rdrop_jax.training.state import abstract_params
from rdrop_jax.training.task import Predictor, Task

_AVERAGE = "average:"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Config, task and parameters of a run, for evaluation and prediction.

    Attributes:
      config: config of the run.
      task: task built from the config.
      mesh: mesh over this machine's devices.
      params: parameters of a checkpoint, or their moving average if the run keeps one.
      step: step of that checkpoint; the newest step if several are averaged.
    """

    config: ConfigDict
    task: Task
    mesh: Mesh
    params: Params
    step: int

    def predictor(self) -> Predictor:
        """Make the predictor of the task.

        Raises:
          InputError: the task has none.
        """
        if self.task.predictor is None:
            raise InputError(
                f"--workdir: expected a task with predictions, found {self.config.task}"
            )
        return self.task.predictor(self.mesh)


def open_run(
    workdir: Path,
    checkpoint: str = "best",
    config: ConfigDict | None = None,
    task: Task | None = None,
) -> Run:
    """Open a workdir read-only, also while it is being trained.

    Args:
      workdir: folder of the run.
      checkpoint: "best" on validation, "last", a step, or "average:N", the mean of the
        parameters of the N newest.
      config: config of the run, whose ``eval`` fields may differ; None reads the stored
        one.
      task: task of the run, if ``config.task`` is not one of the package.

    Returns:
      The run with its parameters.

    Raises:
      InputError: no run there, or no such checkpoint.
    """
    config = config or workdir_lib.read(workdir)
    task = task or tasks.build(config, workdir)
    mesh = make_mesh(**config.mesh)
    abstract = abstract_params(task, mesh)
    ema = config.optimizer.ema > 0
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:

        def load(step: int) -> Params:
            return checkpoints.restore_params(step, abstract, ema=ema)

        if checkpoint.startswith(_AVERAGE):
            steps = checkpoints.newest(checkpoint.removeprefix(_AVERAGE))
            step, params = steps[0], averaged(load, steps)
        else:
            step, params = checkpoints.read(checkpoint, load)
    return Run(config, task, mesh, params, step)


def averaged(load: Callable[[int], Params], steps: Sequence[int]) -> Params:
    """Average parameters of several steps in float32, at most two in memory at once."""
    total = load(steps[0])
    for step in steps[1:]:
        total = jax.tree.map(jnp.add, total, load(step))
    return jax.tree.map(lambda x: x / len(steps), total)


def open_weights(name: str, task: Task) -> Weights:
    """Load the weights that ``init_from`` names.

    Args:
      name: a workdir, WORKDIR:STEP, or a file or folder that the task can read.
      task: task that will use the weights.

    Returns:
      The weights.

    Raises:
      InputError: not such a file or folder, or corrupt.
    """
    path = Path(name)
    if weight_files.is_weights(path):
        if task.pretrained is None:
            raise families.only_workdirs(name)
        return task.pretrained.read(path)
    workdir, checkpoint = workdir_lib.split_checkpoint(name)
    run = open_run(workdir, checkpoint)
    family = run.task.pretrained
    facts = {} if family is None else family.facts
    classes = (family.classes or ()) if family else ()
    sums = workdir / "checkpoints" / f"step_{run.step}" / checksums.NAME
    digests = {f"step_{run.step}/{checksums.NAME}": checksums.sha256(sums)}
    return Weights(flatten(run.params), facts, sha256=digests, classes=classes)


def initializer(
    weights: Weights, task: Task, reinit: str
) -> Callable[[Params], Params]:
    """Return a function that replaces new parameters by pretrained weights.

    Args:
      weights: weights from `open_weights`.
      task: task that will use the weights.
      reinit: parts to re-initialize, separated by commas.

    Returns:
      A function from new parameters to the initial parameters of the run.
    """
    family = task.pretrained

    def initialize(new: Params) -> Params:
        params, notes = merge(
            new,
            weights,
            facts=family.facts if family else {},
            resize=family.resize if family else {},
            reinit=family.reinit if family else (),
            fresh=[part.strip() for part in reinit.split(",") if part.strip()],
            classes=family.classes if family else None,
        )
        for note in notes:
            _logger.info("init_from: %s", note)
        return params

    return initialize
