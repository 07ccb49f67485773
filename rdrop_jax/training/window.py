"""Metrics, speed and data wait between two log lines."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from rdrop_jax.core.metrics import Mean, compute, merge

# One device call instead of one per metric: at each call, a thread that makes batches
# may take the GIL.
_merge = jax.jit(merge)


class LogSteps:
    """Steps at which the loop logs, at intervals of fixed steps or of about fixed time.

    For intervals in seconds, process 0 chooses the next logged step at each log line,
    so that all processes log at the same steps. The interval at most doubles from line
    to line, because the first steps give a poor estimate of the speed.

    Args:
      step: step after which training starts.
      every: interval in steps; 0 logs only at the last step.
      seconds: interval in seconds; if above 0, it replaces ``every``.
      decide: function that broadcasts the result of its argument from process 0.
    """

    def __init__(
        self,
        step: int,
        every: int,
        seconds: float,
        decide: Callable[[Callable[[], int]], int],
    ) -> None:
        self._every, self._seconds, self._decide = every, seconds, decide
        self._last, self._next = step, step + 2  # the first step compiles
        self._clock = time.perf_counter()

    def due(self, step: int) -> bool:
        """Return whether this step is logged."""
        if self._seconds:
            return step >= self._next
        return self._every > 0 and step % self._every == 0

    def compiled(self, step: int) -> None:
        """Start to measure the speed after the step that compiled."""
        self._last, self._clock = step, time.perf_counter()

    def logged(self, step: int) -> None:
        """Choose the step of the next log line after one at ``step``."""
        if not self._seconds:
            return
        done, now = max(step - self._last, 1), time.perf_counter()
        passed = max(now - self._clock, 1e-6)

        def distance() -> int:
            return max(1, min(2 * done, round(self._seconds * done / passed)))

        self._next = step + self._decide(distance)
        self._last, self._clock = step, now


class Window:
    """Metrics and time since the last log line; read from the device only for logs."""

    def __init__(self, step: int, seconds: float) -> None:
        self._began = self._steady = self._clock = time.perf_counter()
        self._before = seconds
        self._step = self._first = step
        self._metrics: dict[str, Mean] | None = None
        self._idle_since: float | None = None
        self._idle = 0.0

    def add(self, metrics: dict[str, Mean]) -> None:
        """Merge the metrics of one step."""
        old = self._metrics
        self._metrics = metrics if old is None else _merge(old, metrics)

    def idle(self, last: Any) -> None:
        """Start to count idle time: wait for ``last``, then the device has no batch."""
        jax.block_until_ready(last)
        self._idle_since = time.perf_counter()

    def busy(self) -> None:
        """Stop counting idle time: the next batch is available."""
        if self._idle_since is not None:
            self._idle += time.perf_counter() - self._idle_since
        self._idle_since = None

    def compiled(self, step: int) -> float:
        """Start to measure speed after the step that compiled; return its seconds."""
        self._clock = self._steady = time.perf_counter()
        self._step = self._first = step
        self._idle = 0.0
        return self._clock - self._began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time of the block, a validation or a save, from the speed.

        The device must have finished the steps before it.
        """
        start = time.perf_counter()
        yield
        self._clock += time.perf_counter() - start

    def read(self, step: int) -> dict[str, float]:
        """Return metric means, steps per second and the share of time spent waiting for
        data; start the next window.

        A metric without a weight is left out, such as ``kl`` without a step of R-Drop.
        """
        means = jax.device_get(self._metrics or {})
        values = compute({name: mean for name, mean in means.items() if mean.weight})
        now = time.perf_counter()
        if step > self._step:
            values["steps_per_second"] = (step - self._step) / (now - self._clock)
            values["data_wait"] = self._idle / (now - self._clock)
        self._idle = 0.0
        self._metrics, self._step, self._clock = None, step, now
        return values

    def seconds(self) -> float:
        """Return the training time in seconds, including earlier starts."""
        return self._before + time.perf_counter() - self._began

    def eta(self, step: int, total: int) -> str:
        """Return the estimated remaining time as ``minutes:seconds``.

        Includes validations and saves; excludes the first step, which compiles.
        """
        if step == self._first:
            return "unknown"
        pace = (time.perf_counter() - self._steady) / (step - self._first)
        minutes, seconds = divmod(round(pace * (total - step)), 60)
        return f"{minutes}:{seconds:02d}"
