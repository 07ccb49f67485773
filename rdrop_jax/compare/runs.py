"""Runs of a comparison in separate processes."""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from rdrop_jax.compare.comparison_options import ComparisonOptions
from rdrop_jax.compare.plan import Trial
from rdrop_jax.errors import InputError
from rdrop_jax.training.preemption import Stop

_logger = logging.getLogger(__name__)


@runtime_checkable
class Process(Protocol):
    """Interface of the processes that `execute` manages."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...


class Child:
    """Process that exits with its parent, because its standard input is closed then.

    It has a separate session, so that Ctrl-C reaches only the parent.
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


Start = Callable[[ComparisonOptions, Trial, Path], Process]
_LOG = "output.log"
_WORKER = (sys.executable, "-m", "rdrop_jax.compare.worker")


def start(options: ComparisonOptions, trial: Trial, workdir: Path) -> Process:
    """Start the process of a run, with its output appended to ``output.log``."""
    workdir.mkdir(parents=True, exist_ok=True)
    job = {
        "config": options.config,
        "overrides": trial.overrides,
        "workdir": str(workdir),
        "final": trial.final,
    }
    with (workdir / _LOG).open("a") as log:
        return Child([*_WORKER, json.dumps(job)], log)


def probe(options: ComparisonOptions) -> dict[str, Any]:
    """Run `worker.probe` in a separate process and return its result.

    Raises:
      InputError: unreadable data, or a config from which no model can be built.
    """
    variants = [options.pinned(options.overrides | v) for v in options.variants]
    job = {"config": options.config, "probe": variants}
    process = subprocess.run(
        [*_WORKER, json.dumps(job)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise InputError(last_error(process.stderr) or "the task cannot be built")
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found


def last_error(output: str) -> str:
    """Return all lines of the last error in a process's output, else the last line."""
    lines = output.strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "\n".join(lines[starts[-1] if starts else -1 :]).removeprefix("error: ")


def finished(trial: Trial, workdir: Path) -> bool:
    """Return whether a run has written all files that the report needs."""
    needed = ["result.json"] + ["diagnostics.json"] * trial.final
    return all((workdir / trial.name / name).is_file() for name in needed)


class RunProgress:
    """Progress messages: counts runs and estimates the remaining time.

    Args:
      total: number of runs of the comparison.
      jobs: number of concurrent runs.
    """

    def __init__(self, total: int, jobs: int) -> None:
        self._left, self._total, self._jobs = total, total, jobs
        self._seconds: list[float] = []

    def skip(self, count: int) -> None:
        """Count runs that are finished already or will not be executed."""
        self._left -= count

    def add(self, trial: Trial, seconds: float, outcome: str) -> None:
        """Log the line of a run that ended."""
        self._left -= 1
        self._seconds.append(seconds)
        mean = sum(self._seconds) / len(self._seconds)
        minutes, rest = divmod(round(mean * self._left / self._jobs), 60)
        _logger.info(
            "[%d/%d] %s: %s, %.0f s  ETA %d:%02d",
            self._total - self._left,
            self._total,
            trial.name,
            outcome,
            seconds,
            minutes,
            rest,
        )


def execute(
    options: ComparisonOptions,
    trials: Sequence[Trial],
    workdir: Path,
    *,
    jobs: int,
    progress: RunProgress,
    stop: Stop,
    start: Start = start,
) -> dict[str, str]:
    """Execute all unfinished runs, several concurrently.

    Args:
      options: options of the comparison.
      trials: runs, in order.
      workdir: folder of the comparison.
      jobs: number of concurrent processes.
      progress: counter that is notified of each run that ends.
      stop: request to stop, polled all the time; once set, the processes are killed.
      start: function that starts the process of a run.

    Returns:
      Names of failed runs to the reasons.

    Raises:
      Stopped: ``stop`` was set.
    """
    waiting = [trial for trial in trials if not finished(trial, workdir)]
    progress.skip(len(trials) - len(waiting))
    running: list[tuple[Trial, Process, float, int]] = []
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            stop.raise_if_requested("during a run: its checkpoints are valid")
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                log = workdir / trial.name / _LOG
                size = log.stat().st_size if log.is_file() else 0
                process = start(options, trial, workdir / trial.name)
                running.append((trial, process, time.monotonic(), size))
            for item in list(running):
                trial, process, started, size = item
                code = process.poll()
                if code is None:
                    continue
                running.remove(item)
                outcome = "finished"
                if not finished(trial, workdir):
                    log = workdir / trial.name / _LOG
                    failed[trial.name] = _failure(log, size, code)
                    outcome = f"FAILED: {failed[trial.name]}"
                progress.add(trial, time.monotonic() - started, outcome)
            if running:
                time.sleep(0.1)
    finally:
        for _, process, *_ in running:
            process.kill()
    return failed


def _failure(log: Path, size: int, code: int) -> str:
    """Return the reason of a run's failure.

    Args:
      log: output of all starts of the run.
      size: size of the log before this start.
      code: exit code; negative for a signal.
    """
    output = log.read_bytes()[size:].decode(errors="replace") if log.is_file() else ""
    reason = last_error(output) or "no output"
    return f"killed by signal {-code} after: {reason}" if code < 0 else reason
