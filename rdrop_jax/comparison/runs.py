"""Runs of a comparison in processes of their own. Needs no jax."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from rdrop_jax.comparison.options import Options
from rdrop_jax.comparison.plan import Trial
from rdrop_jax.errors import InputError
from rdrop_jax.runtime.preemption import Stop


@runtime_checkable
class Process(Protocol):
    """What `execute` needs of a process."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


class Child:
    """A process that ends when this one does, because its standard input closes.

    It leaves our process group, so that Ctrl-C reaches it through us alone.
    """

    def __init__(self, argv: Sequence[str], log: IO[str]) -> None:
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.poll()


Start = Callable[[Options, Trial, Path], Process]
_WORKER = (sys.executable, "-m", "rdrop_jax.comparison.worker")


def start(options: Options, trial: Trial, workdir: Path) -> Process:
    """Starts the process of a run; what it says goes to ``output.log``."""
    workdir.mkdir(parents=True, exist_ok=True)
    job = {
        "config": options.config,
        "overrides": trial.overrides,
        "workdir": str(workdir),
        "final": trial.final,
    }
    with (workdir / "output.log").open("a") as log:
        return Child([*_WORKER, json.dumps(job)], log)


def probe(options: Options, variants: Sequence[dict[str, str]]) -> dict[str, Any]:
    """What the task and the devices say, from a process of its own.

    Raises:
      InputError: data that cannot be read, or fields that no model can be built of.
    """
    job = {
        "config": options.config,
        "probe": [options.overrides | variant for variant in variants],
    }
    process = subprocess.run(
        [*_WORKER, json.dumps(job)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise InputError(message(process.stderr.strip().splitlines()))
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def message(said: Sequence[str]) -> str:
    """The error that a process ended with, all of its lines; else its last line."""
    if not said:
        return "the task cannot be built"
    starts = [i for i, line in enumerate(said) if line.startswith("error: ")]
    return "\n".join(said[starts[-1] if starts else -1 :]).removeprefix("error: ")


def finished(trial: Trial, workdir: Path) -> bool:
    """Whether a run has left all that the report needs of it."""
    if trial.final and not (workdir / "diagnostics.json").is_file():
        return False
    return (workdir / "result.json").is_file()


class Progress:
    """Counts runs and says how long the rest will take.

    Args:
      total: runs of the whole comparison.
      jobs: how many run at a time.
    """

    def __init__(self, total: int, jobs: int) -> None:
        self._left, self._total, self._jobs = total, total, jobs
        self._seconds: list[float] = []

    def skip(self, count: int) -> None:
        """Counts runs that an earlier start finished, or that will never be made."""
        self._left -= count

    def done(self, trial: Trial, seconds: float, outcome: str) -> None:
        """Prints the line of a run that ended."""
        self._left -= 1
        self._seconds.append(seconds)
        mean = sum(self._seconds) / len(self._seconds)
        minutes, rest = divmod(round(mean * self._left / self._jobs), 60)
        print(
            f"[{self._total - self._left}/{self._total}] {trial.name}: {outcome}, "
            f"{seconds:.0f} s  ETA {minutes}:{rest:02d}",
            flush=True,
        )


def execute(
    options: Options,
    trials: Sequence[Trial],
    workdir: Path,
    *,
    jobs: int,
    progress: Progress,
    stop: Stop,
    start: Start = start,
) -> dict[str, str]:
    """Makes all runs that are not finished, some at a time.

    Args:
      options: what was asked for.
      trials: the runs, in order.
      workdir: of the comparison.
      jobs: processes at a time.
      progress: takes what ended.
      stop: looked at all the time; once set, the runs are ended where they are.
      start: makes the process of a run.

    Returns:
      Name of each run that failed, and why.

    Raises:
      Stopped: ``stop`` was set.
    """
    waiting = [t for t in trials if not finished(t, workdir / t.name)]
    progress.skip(len(trials) - len(waiting))
    running: list[tuple[Trial, Process, float]] = []
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            stop.check("between updates: what was saved stays")
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                process = start(options, trial, workdir / trial.name)
                running.append((trial, process, time.monotonic()))
            for item in list(running):
                trial, process, began = item
                if process.poll() is None:
                    continue
                running.remove(item)
                if not finished(trial, workdir / trial.name):
                    failed[trial.name] = why(workdir / trial.name)
                outcome = (
                    f"FAILED: {failed[trial.name]}" if trial.name in failed else ""
                )
                progress.done(trial, time.monotonic() - began, outcome or "finished")
            if running:
                time.sleep(0.1)
    finally:
        for _, process, _ in running:
            process.kill()
    return failed


def why(workdir: Path) -> str:
    """The last line that a run left."""
    log = workdir / "output.log"
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else "ended without a word"
