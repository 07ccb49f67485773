"""Checkpoints of a train state, by orbax: async, the newest few and the best.

Each checkpoint holds the state and a small record of the run's progress. The step is
the data position; nothing else is stored.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rdrop_jax.errors import InputError
from rdrop_jax.runtime.disk import explained


@dataclass(frozen=True)
class Progress:
    """What a run knows besides its state.

    Attributes:
      best_step: checkpoint with the best validation score; -1 before the first.
      best_score: that score.
      stale: validations since then.
      seconds: training time so far, over all restarts.
    """

    best_step: int = -1
    best_score: float = 0.0
    stale: int = 0
    seconds: float = 0.0


class Checkpoints:
    """Saves and restores under ``workdir/checkpoints``.

    Args:
      workdir: folder of the run.
      keep: newest checkpoints that stay, besides the best.
      read_only: for programs that look at a run that may still be going on.
    """

    def __init__(
        self, workdir: Path, *, keep: int = 2, read_only: bool = False
    ) -> None:
        self._folder = (workdir / "checkpoints").resolve()
        if read_only and not self._folder.is_dir():
            raise InputError(f"--workdir: no checkpoints in {workdir}")
        best = policies.BestN(
            # Of equal scores the first is the best.
            get_metric_fn=lambda metrics: (metrics["score"], -metrics["step"]),
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                step_prefix="step",
            ),
        )

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, progress: Progress, score: float | None
    ) -> None:
        """Begins to save; returns once the arrays are copied off the devices.

        Args:
          step: number of updates done.
          state: the train state.
          progress: stored beside it.
          score: validation score at this step, the higher the better, if there is one.
        """
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            progress=ocp.args.JsonSave(asdict(progress)),
        )
        metrics = None if score is None else {"score": score, "step": step}
        with explained(self._folder):
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def restore(self, step: int, abstract: Any) -> tuple[Any, Progress]:
        """The state at a step, placed as ``abstract`` says, and its progress."""
        args = ocp.args.Composite(
            state=_restore_args(abstract), progress=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        return found["state"], Progress(**found["progress"])

    def restore_params(self, step: int, abstract: Any, *, ema: bool) -> Any:
        """The parameters alone, or their moving average."""
        item = {"ema_params" if ema else "params": abstract}
        args = ocp.args.Composite(state=_restore_args(item, partial_restore=True))
        found = self._manager.restore(step, args=args)
        (params,) = found["state"].values()
        return params

    def progress(self, step: int) -> Progress:
        """The record stored with a step."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return Progress(**self._manager.restore(step, args=args)["progress"])

    def pick(self, which: str) -> int:
        """The step that "best", "last" or a number means.

        Raises:
          InputError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"--checkpoint: {self._folder} holds no checkpoint yet")
        if which == "last":
            return steps[-1]
        if which == "best":
            best = self.progress(steps[-1]).best_step
            return best if best in steps else steps[-1]
        if which.isdigit() and int(which) in steps:
            return int(which)
        raise InputError(
            f"--checkpoint: expected best, last or one of {steps}, found {which!r}"
        )

    def wait(self) -> None:
        """Returns once every save has reached the disk."""
        with explained(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases threads."""
        with explained(self._folder):
            self._manager.close()


def _restore_args(item: Any, *, partial_restore: bool = False) -> Any:
    """Asks for these leaves with these shardings, whatever mesh they were saved on."""
    placed = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, placed, partial_restore=partial_restore)
