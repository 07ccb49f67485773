"""A finished or running run, opened to be used."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import tasks
from rdrop_jax.core.passes import Params
from rdrop_jax.runtime import workdir as workdir_lib
from rdrop_jax.runtime.checkpoint import Checkpoints
from rdrop_jax.runtime.mesh import make_mesh
from rdrop_jax.state import abstract_params
from rdrop_jax.tasks.base import Task

_AVERAGE = "average:"


@dataclass(frozen=True)
class Run:
    """What evaluation and prediction need of a workdir.

    Attributes:
      config: that it was begun with.
      task: built from it.
      mesh: over this machine's devices.
      params: of one checkpoint, their moving average where the run keeps one.
      step: of that checkpoint, the newest of several.
    """

    config: ConfigDict
    task: Task
    mesh: Mesh
    params: Params
    step: int


def open_run(
    workdir: Path,
    checkpoint: str = "best",
    config: ConfigDict | None = None,
) -> Run:
    """Opens a workdir read-only, also while it is being trained.

    Args:
      workdir: folder of the run.
      checkpoint: "best" on validation, "last", a step, or "average:N", the mean of the
        parameters of the N newest.
      config: of the run; None reads it. One whose ``eval`` differs scores and decodes
        in another way.

    Returns:
      The run with its parameters.

    Raises:
      InputError: no run there, or no such checkpoint.
    """
    config = config or workdir_lib.read(workdir)
    task = tasks.build(config, workdir)
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
    """The mean of the parameters at some steps, in float32, two at a time in memory."""
    total = load(steps[0])
    for step in steps[1:]:
        total = jax.tree.map(jnp.add, total, load(step))
    return jax.tree.map(lambda x: x / len(steps), total)


def split_checkpoint(name: str) -> tuple[Path, str]:
    """``WORKDIR`` or ``WORKDIR:CHECKPOINT`` to both; the best where none is named."""
    path, colon, checkpoint = name.rpartition(":")
    if colon and (checkpoint.isdigit() or checkpoint in ("best", "last")):
        return Path(path), checkpoint
    return Path(name), "best"
