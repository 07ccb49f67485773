"""A finished or running run, opened to be used."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import tasks
from rdrop_jax.core.passes import Params
from rdrop_jax.runtime import workdir as workdir_lib
from rdrop_jax.runtime.checkpoint import Checkpoints
from rdrop_jax.runtime.mesh import make_mesh
from rdrop_jax.state import abstract_params
from rdrop_jax.tasks.base import Task


@dataclass(frozen=True)
class Run:
    """What evaluation and prediction need of a workdir.

    Attributes:
      config: that it was begun with.
      task: built from it.
      mesh: over this machine's devices.
      params: of one checkpoint, their moving average where the run keeps one.
      step: of that checkpoint.
    """

    config: ConfigDict
    task: Task
    mesh: Mesh
    params: Params
    step: int


def open_run(workdir: Path, checkpoint: str = "best") -> Run:
    """Opens a workdir read-only, also while it is being trained.

    Args:
      workdir: folder of the run.
      checkpoint: "best" on validation, "last", or a step.

    Returns:
      The run with its parameters.

    Raises:
      InputError: no run there, or no such checkpoint.
    """
    config = workdir_lib.read(workdir)
    task = tasks.build(config)
    mesh = make_mesh(**config.mesh)
    abstract = abstract_params(task, mesh)
    ema = config.optimizer.ema > 0
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step, params = checkpoints.read(
            checkpoint, lambda step: checkpoints.restore_params(step, abstract, ema=ema)
        )
    return Run(config, task, mesh, params, step)


def split_checkpoint(name: str) -> tuple[Path, str]:
    """``WORKDIR`` or ``WORKDIR:CHECKPOINT`` to both; the best where none is named."""
    path, colon, checkpoint = name.rpartition(":")
    if colon and (checkpoint.isdigit() or checkpoint in ("best", "last")):
        return Path(path), checkpoint
    return Path(name), "best"
