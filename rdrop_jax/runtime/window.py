"""What happens between two log lines: metrics, speed, waiting."""

import time
from typing import Any

import jax

from rdrop_jax.core.metrics import Mean, compute, merge

# One call to the device in place of one for each metric: a thread that makes batches
# may take the interpreter at each.
_merge = jax.jit(merge)


class Window:
    """Metrics and time since the last log line; read from the device only to log."""

    def __init__(self, step: int, seconds: float) -> None:
        self._began = self._clock = time.perf_counter()
        self._before = seconds
        self._step = self._first = step
        self._metrics: dict[str, Mean] | None = None
        self._idle_since: float | None = None
        self._idle = 0.0

    def add(self, metrics: dict[str, Mean]) -> None:
        """Merges the metrics of one step."""
        old = self._metrics
        self._metrics = metrics if old is None else _merge(old, metrics)

    def idle(self, last: Any) -> None:
        """A batch is late: once the device is done with ``last``, it waits."""
        jax.block_until_ready(last)
        self._idle_since = time.perf_counter()

    def busy(self) -> None:
        """The batch is there."""
        if self._idle_since is not None:
            self._idle += time.perf_counter() - self._idle_since
        self._idle_since = None

    def compiled(self, step: int) -> float:
        """Starts to measure speed after the step that compiled; returns its seconds."""
        self._clock, self._step, self._first = time.perf_counter(), step, step
        self._idle = 0.0
        return self._clock - self._began

    def read(self, step: int) -> dict[str, float]:
        """Means over the window, steps per second, the part of the time that devices
        waited for data; begins the next window."""
        values = compute(self._metrics or {})
        now = time.perf_counter()
        if step > self._step:
            values["steps_per_second"] = (step - self._step) / (now - self._clock)
            values["data_wait"] = self._idle / (now - self._clock)
        self._idle = 0.0
        self._metrics, self._step, self._clock = None, step, now
        return values

    def seconds(self) -> float:
        """Training time, earlier starts included."""
        return self._before + time.perf_counter() - self._began

    def eta(self, step: int, total: int) -> str:
        """Minutes and seconds to go at the pace so far."""
        pace = (time.perf_counter() - self._began) / max(step - self._first, 1)
        minutes, seconds = divmod(round(pace * (total - step)), 60)
        return f"{minutes}:{seconds:02d}"
