"""Asynchronous checkpoints of a train state by orbax: the newest few and the best.

Each checkpoint contains the state and a small record of the run's progress. The step is
the data position, so no other position is stored. A checkpoint is complete once its
checksum file is written (`rdrop_jax.files.checksums`). Checksums are verified on load.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.files.disk import GONE, explained, identity, read_json
from rdrop_jax.training.agreement import check_visible
from rdrop_jax.training.distributed import from_process_0
from rdrop_jax.training.workdir import is_number

T = TypeVar("T")
_NONE = -1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Record of a run's progress, stored alongside the train state.

    Attributes:
      best_step: step with the best validation score; -1 before the first validation.
      best_score: score at ``best_step``; higher is better.
      stale: number of validations since ``best_step``.
      seconds: training time so far, over all restarts.
    """

    best_step: int = -1
    best_score: float = 0.0
    stale: int = 0
    seconds: float = 0.0


class Retention:
    """Preservation policy for orbax: keep the newest checkpoints and the best.

    The best of the previous save is kept too, while the newest is not yet complete.

    Args:
      newest: number of newest checkpoints to keep.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._bests = (-1, -1)

    def follow(self, best_step: int) -> None:
        """Set the best step for the next save."""
        self._bests = (self._bests[1], best_step)

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Return which checkpoints to keep; called by orbax with steps in order."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._newest :], *self._bests}
        return [step in kept for step in steps]


def missing_checkpoints(workdir: Path, keep: int, total_steps: int) -> int:
    """Return how many checkpoints a run will hold in addition to those in its workdir.

    In addition to the ``keep`` newest, a run holds the best and the one being written.

    Args:
      workdir: folder of the run.
      keep: number of newest checkpoints to keep.
      total_steps: length of the run; a complete one writes no checkpoint.
    """
    steps = checksums.complete_steps(workdir / "checkpoints")
    if max(steps, default=0) >= total_steps:
        return 0
    return max(keep + 2 - len(steps), 1)


class Checkpoints:
    """Save and restore checkpoints under ``workdir/checkpoints``.

    Args:
      workdir: folder of the run.
      keep: number of newest checkpoints to keep, in addition to the best.
      read_only: True for programs that read a run, which may still be training.
    """

    def __init__(
        self, workdir: Path, keep: int = 2, *, read_only: bool = False
    ) -> None:
        self._folder = (workdir / "checkpoints").resolve()
        if read_only and not self._folder.is_dir():
            raise InputError(f"--workdir: no checkpoints in {workdir}")
        self._retention = Retention(keep)
        self._manager = self._opened(read_only)
        self._place = identity(self._folder)
        self._home = identity(self._folder.parent)
        self._checksum_thread = ThreadPoolExecutor(1, thread_name_prefix="checksums")
        self._pending: Future[None] | None = None
        self._last = 0

    def _opened(self, read_only: bool) -> ocp.CheckpointManager:
        # orbax sets these for a read-only manager itself, but logs a warning.
        reading = {"create": False, "save_interval_steps": 0} if read_only else {}
        with explained(self._folder), _without_note_on_reading():
            return ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._retention,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    step_prefix="step",
                    **reading,
                ),
            )

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, oldest first."""
        return checksums.complete_steps(self._folder)

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Start to save; return once the arrays are copied off the devices.

        Args:
          step: number of completed steps.
          state: train state.
          progress: record to store alongside the state.
        """
        self.wait()
        moved = from_process_0(self._moved)
        if (
            not moved
            and self._last
            and not checksums.is_complete(self._path(self._last))
        ):
            _logger.warning("checkpoint step %d: removed during the run", self._last)
        self._last = step
        if moved:  # the storage layer would silently recreate the folder
            self._manager = self._opened(read_only=False)
        self._start_save(step, state, progress)
        if moved:
            self.wait()
            raise InputError(
                f"--workdir: expected {self._folder} to stay in place, found it "
                f"removed or renamed during the run. Step {step} is saved in a new "
                "folder there; earlier checkpoints are not. Start again to resume"
            )

    def _moved(self) -> int:
        """Return 1 if the checkpoint folder was removed or renamed, else 0.

        Raises:
          InputError: the workdir is gone as well, or another folder replaced either.
        """
        found = identity(self._folder)
        if found == self._place:
            return 0
        if found == GONE and identity(self._folder.parent) == self._home:
            return 1
        raise InputError(
            f"--workdir: expected {self._folder} to stay in place, found it "
            "removed, renamed or unmounted during the run. Nothing was saved since. "
            "Restore it, and start again to resume from its newest checkpoint"
        )

    def _start_save(self, step: int, state: Any, progress: Progress) -> None:
        self._retention.follow(progress.best_step)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            progress=ocp.args.JsonSave(asdict(progress)),
        )
        with explained(self._folder):
            self._manager.save(step, args=args, force=True)
        self._pending = self._checksum_thread.submit(self._write_checksums, step)

    def _write_checksums(self, step: int) -> None:
        with explained(self._folder):
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            checksums.write(self._path(step))

    def restore(self, step: int, abstract: Any) -> tuple[Any, Progress]:
        """Return the state and progress at a step, sharded as in ``abstract``."""
        args = ocp.args.Composite(
            state=_restore_args(abstract), progress=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        progress = Progress(**found["progress"])
        self._retention.follow(progress.best_step)
        return found["state"], progress

    def restore_params(self, step: int, abstract: Any, *, ema: bool) -> Any:
        """Return the parameters of a step, or their moving average if ``ema``."""
        item = {"ema_params" if ema else "params": abstract}
        args = ocp.args.Composite(state=_restore_args(item, partial_restore=True))
        found = self._manager.restore(step, args=args)
        (params,) = found["state"].values()
        return params

    def progress(self, step: int) -> Progress:
        """Return the progress stored with a step.

        Does not use orbax, which would wait for all processes: one may call this alone.
        """
        return Progress(**read_json(self._path(step) / "progress" / "metadata"))

    def read(self, which: str, load: Callable[[int], T]) -> tuple[int, T]:
        """Load the checkpoint that `pick` selects; retry if training pruned it.

        Args:
          which: "best", "last" or a step.
          load: function that loads a step.

        Returns:
          The step and the return value of ``load``.
        """
        while True:
            step = self.pick(which)
            try:
                return step, load(step)
            except (OSError, ValueError, KeyError):
                # With several processes, do not retry: `pick` needs all of them.
                if jax.process_count() > 1 or not checksums.problem(self._path(step)):
                    raise

    def pick(self, which: str) -> int:
        """Return the step for "best", "last" or a number, after verifying checksums.

        For "best" and "last", corrupt checkpoints are skipped with a message. Process 0
        decides for all processes.

        Raises:
          InputError: the checkpoint does not exist or is corrupt, or none is valid.
        """
        step = from_process_0(lambda: self._pick(which))
        self._check_visible(step)
        return step

    def _check_visible(self, step: int) -> None:
        remedy = f"Wait until checkpoint step {step} is visible there, and start again"
        check_visible(self._folder, [f"step_{step}/{checksums.NAME}"], remedy)

    def _pick(self, which: str) -> int:
        steps = sorted(checksums.step_folders(self._folder), reverse=True)
        if not steps:
            raise InputError(f"--checkpoint: {self._folder} contains no checkpoint yet")
        if which == "last":
            return self._first_valid(steps)
        if which == "best":
            newest = self._first_valid(steps, under="progress")
            best = self.progress(newest).best_step
            return self._first_valid([best, *steps] if best >= 0 else steps)
        if not is_number(which) or int(which) not in steps:
            raise InputError(
                "--checkpoint: expected best, last, average:N or one of "
                f"{self.steps()}, found {which!r}"
            )
        if reason := checksums.problem(self._path(int(which))):
            raise InputError(f"--checkpoint: step {which} is corrupt: {reason}")
        return int(which)

    def newest(self, count: str) -> list[int]:
        """Return the steps of the ``count`` newest valid checkpoints, newest first.

        Raises:
          InputError: ``count`` is not a number, or there are fewer valid checkpoints.
        """
        if not is_number(count) or int(count) < 1:
            raise InputError(
                f"--checkpoint: expected average:N with N at least 1, found {count!r}"
            )
        folders = checksums.step_folders(self._folder)
        valid = [
            s
            for s in sorted(folders, reverse=True)
            if not checksums.problem(folders[s])
        ]
        # All processes average as many checkpoints as process 0 finds.
        there = from_process_0(lambda: len(valid))
        if int(count) > there:
            raise InputError(
                f"--checkpoint: expected {count} valid checkpoints to average, found "
                f"{there}: {sorted(valid)}; checkpoint.keep sets how many a run keeps"
            )
        return valid[: int(count)]

    def latest(self) -> int | None:
        """Return the step to resume from; rename newer, corrupt checkpoints.

        Returns:
          The step of the newest valid checkpoint; None if no save ever completed.

        Raises:
          InputError: there are completed checkpoints, but none is valid.
        """
        step = from_process_0(self._cleared)
        if step != _NONE:
            self._check_visible(step)
        self._manager.reload()
        return None if step == _NONE else step

    def _cleared(self) -> int:
        steps = sorted(checksums.step_folders(self._folder), reverse=True)
        fresh = checksums.none_complete(self._folder)
        step = _NONE if fresh else self._first_valid(steps)
        for newer in (s for s in steps if s > step):
            aside = self._folder / f"damaged_step_{newer}"
            with explained(self._folder):
                shutil.rmtree(aside, ignore_errors=True)
                self._path(newer).rename(aside)
            _logger.warning("checkpoint step %d: moved to %s", newer, aside.name)
        return step

    def _first_valid(self, steps: Iterable[int], under: str = "") -> int:
        """Return the first step with a valid checkpoint; log why others are skipped."""
        problems: dict[int, str] = {}
        for step in steps:
            problems[step] = problems.get(step) or checksums.problem(
                self._path(step), under
            )
            if problems[step]:
                continue
            for corrupt in (s for s in problems if problems[s]):
                _logger.warning(
                    "checkpoint step %d: %s; using step %d",
                    corrupt,
                    problems[corrupt],
                    step,
                )
            return step
        lines = [f"  step {step}: {problem}" for step, problem in problems.items()]
        raise InputError(
            f"--workdir: {self._folder}: no valid checkpoint, all are corrupt. "
            "Restore one from a backup or use another workdir:\n" + "\n".join(lines)
        )

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def wait(self) -> None:
        """Wait until every save is on disk and its checksum file is written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for pending saves, then release the threads."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(self._folder))
            stack.callback(self._manager.close)
            stack.callback(self._checksum_thread.shutdown)
            self.wait()


@contextlib.contextmanager
def _without_note_on_reading() -> Iterator[None]:
    """Suppress orbax's warning that a read-only manager cannot write."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _restore_args(item: Any, *, partial_restore: bool = False) -> Any:
    """Return orbax arguments to restore with the shardings of ``item``, on any mesh."""
    placed = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, placed, partial_restore=partial_restore)
