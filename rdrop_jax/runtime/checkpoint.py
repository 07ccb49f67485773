"""Checkpoints of a train state, by orbax: async, the newest few and the best.

Each checkpoint holds the state and a small record of the run's progress. The step is
the data position; nothing else is stored. A checkpoint is finished when it is sealed
(`rdrop_jax.runtime.seal`), and is read only after its checksums were found to hold.
"""

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from rdrop_jax.errors import InputError
from rdrop_jax.runtime import seal
from rdrop_jax.runtime.agreement import check_visible
from rdrop_jax.runtime.disk import GONE, explained, identity, read_json
from rdrop_jax.runtime.distributed import agreed
from rdrop_jax.runtime.retention import Kept
from rdrop_jax.runtime.workdir import is_number

T = TypeVar("T")
_NONE = -1


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
      say: takes a line for the user; the default prints it on standard error.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._folder = (workdir / "checkpoints").resolve()
        if read_only and not self._folder.is_dir():
            raise InputError(f"--workdir: no checkpoints in {workdir}")
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._kept = Kept(keep)
        self._manager = self._opened(read_only)
        self._place = identity(self._folder)
        self._home = identity(self._folder.parent)
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._sealing: Future[None] | None = None
        self._last = 0

    def _opened(self, read_only: bool) -> ocp.CheckpointManager:
        # What orbax would set itself, with a warning, for a manager that only reads.
        reading = {"create": False, "save_interval_steps": 0} if read_only else {}
        with explained(self._folder), _without_note_on_reading():
            return ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._kept,
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    step_prefix="step",
                    **reading,
                ),
            )

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        folders = seal.step_folders(self._folder)
        return [step for step, folder in folders.items() if seal.sealed(folder)]

    def save(self, step: int, state: Any, progress: Progress) -> None:
        """Begins to save; returns once the arrays are copied off the devices.

        Args:
          step: number of updates done.
          state: the train state.
          progress: stored beside it.
        """
        self.wait()
        moved = agreed(self._moved)
        if not moved and self._last and not seal.sealed(self._path(self._last)):
            self._say(f"checkpoint step {self._last}: removed during the run")
        self._last = step
        if moved:  # storage would make the folder again, in silence
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
        """Return whether the folder of checkpoints is gone.

        Raises:
          InputError: the workdir is gone as well, or something else is in its place.
        """
        found = identity(self._folder)
        if found == self._place:
            return 0
        if found == GONE and identity(self._folder.parent) == self._home:
            return 1
        raise InputError(
            f"--workdir: expected {self._folder} to stay in place, found it "
            "removed, renamed or unmounted during the run. Nothing was saved since. "
            "Put it back, and start again to resume from its newest checkpoint"
        )

    def _start_save(self, step: int, state: Any, progress: Progress) -> None:
        self._kept.follow(progress.best_step)
        args = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            progress=ocp.args.JsonSave(asdict(progress)),
        )
        with explained(self._folder):
            self._manager.save(step, args=args, force=True)
        self._sealing = self._sealer.submit(self._seal, step)

    def _seal(self, step: int) -> None:
        with explained(self._folder):
            self._manager.wait_until_finished()
        if jax.process_index() == 0:
            seal.seal(self._path(step))

    def restore(self, step: int, abstract: Any) -> tuple[Any, Progress]:
        """The state at a step, placed as ``abstract`` says, and its progress."""
        args = ocp.args.Composite(
            state=_restore_args(abstract), progress=ocp.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        progress = Progress(**found["progress"])
        self._kept.follow(progress.best_step)
        return found["state"], progress

    def restore_params(self, step: int, abstract: Any, *, ema: bool) -> Any:
        """The parameters alone, or their moving average."""
        item = {"ema_params" if ema else "params": abstract}
        args = ocp.args.Composite(state=_restore_args(item, partial_restore=True))
        found = self._manager.restore(step, args=args)
        (params,) = found["state"].values()
        return params

    def progress(self, step: int) -> Progress:
        """The record stored with a step.

        Read by hand: orbax would wait for all processes, and one may ask alone.
        """
        return Progress(**read_json(self._path(step) / "progress" / "metadata"))

    def read(self, which: str, load: Callable[[int], T]) -> tuple[int, T]:
        """Loads what `pick` finds, again where a running training pruned it meanwhile.

        Args:
          which: "best", "last" or a number.
          load: reads a step.

        Returns:
          The step, and what ``load`` made of it.
        """
        while True:
            step = self.pick(which)
            try:
                return step, load(step)
            except (OSError, ValueError, KeyError):
                # With others there is no second try: they are not here to decide.
                if jax.process_count() > 1 or not seal.flaw(self._path(step)):
                    raise

    def pick(self, which: str) -> int:
        """The step that "best", "last" or a number means, its checksums verified.

        A damaged one is passed over with a message, but not where a number asks for it.
        Of several processes the first decides for all.

        Raises:
          InputError: there is no such checkpoint, or no whole one.
        """
        step = agreed(lambda: self._pick(which))
        self._check_visible(step)
        return step

    def _check_visible(self, step: int) -> None:
        remedy = f"Wait until checkpoint step {step} is visible there, and start again"
        check_visible(self._folder, [f"step_{step}/{seal.NAME}"], remedy)

    def _pick(self, which: str) -> int:
        steps = sorted(seal.step_folders(self._folder), reverse=True)
        if not steps:
            raise InputError(f"--checkpoint: {self._folder} holds no checkpoint yet")
        if which == "last":
            return self._first_whole(steps)
        if which == "best":
            newest = self._first_whole(steps, under="progress")
            best = self.progress(newest).best_step
            return self._first_whole([best, *steps] if best >= 0 else steps)
        if not is_number(which) or int(which) not in steps:
            raise InputError(
                "--checkpoint: expected best, last, average:N or one of "
                f"{self.steps()}, found {which!r}"
            )
        if reason := seal.flaw(self._path(int(which))):
            raise InputError(f"--checkpoint: step {which} is damaged: {reason}")
        return int(which)

    def newest(self, count: str) -> list[int]:
        """The ``count`` newest whole checkpoints, the newest first.

        Raises:
          InputError: not a number, or fewer are there.
        """
        if not is_number(count) or int(count) < 1:
            raise InputError(
                f"--checkpoint: expected average:N with N at least 1, found {count!r}"
            )
        folders = seal.step_folders(self._folder)
        whole = [s for s in sorted(folders, reverse=True) if not seal.flaw(folders[s])]
        # All processes average as many as the first one finds.
        there = agreed(lambda: len(whole))
        if int(count) > there:
            raise InputError(
                f"--checkpoint: expected {count} whole checkpoints to average, found "
                f"{there}: {sorted(whole)}; checkpoint.keep says how many a run keeps"
            )
        return whole[: int(count)]

    def latest(self) -> int | None:
        """The step to go on from; what is damaged and newer is moved out of its way.

        Returns:
          The newest whole checkpoint; none where nothing was ever finished.

        Raises:
          InputError: checkpoints were finished, and none of them is whole.
        """
        step = agreed(self._cleared)
        if step != _NONE:
            self._check_visible(step)
        self._manager.reload()
        return None if step == _NONE else step

    def _cleared(self) -> int:
        steps = sorted(seal.step_folders(self._folder), reverse=True)
        fresh = seal.only_unfinished(self._folder)
        step = _NONE if fresh else self._first_whole(steps)
        for newer in (s for s in steps if s > step):
            aside = self._folder / f"damaged_step_{newer}"
            with explained(self._folder):
                shutil.rmtree(aside, ignore_errors=True)
                self._path(newer).rename(aside)
            self._say(f"checkpoint step {newer}: moved to {aside.name}")
        return step

    def _first_whole(self, steps: Iterable[int], under: str = "") -> int:
        """The first step without a flaw; says what is wrong with those before it."""
        flaws: dict[int, str] = {}
        for step in steps:
            flaws[step] = flaws.get(step) or seal.flaw(self._path(step), under)
            if flaws[step]:
                continue
            for damaged in (s for s in flaws if flaws[s]):
                self._say(
                    f"checkpoint step {damaged}: {flaws[damaged]}; taking step {step}"
                )
            return step
        lines = [f"  step {step}: {flaw}" for step, flaw in flaws.items()]
        raise InputError(
            f"--workdir: expected a whole checkpoint in {self._folder}, found damaged "
            "ones alone; put back a copy, or take another workdir:\n" + "\n".join(lines)
        )

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step}"

    def wait(self) -> None:
        """Returns once every save has reached the disk and is sealed."""
        sealing, self._sealing = self._sealing, None
        if sealing is not None:
            sealing.result()

    def close(self) -> None:
        """Waits, then releases threads."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(explained(self._folder))
            stack.callback(self._manager.close)
            stack.callback(self._sealer.shutdown)
            self.wait()


@contextlib.contextmanager
def _without_note_on_reading() -> Iterator[None]:
    """Drops orbax's warning that a read-only manager only reads."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    logger = logging.getLogger("absl")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def _restore_args(item: Any, *, partial_restore: bool = False) -> Any:
    """Asks for these leaves with these shardings, whatever mesh they were saved on."""
    placed = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, placed, partial_restore=partial_restore)
