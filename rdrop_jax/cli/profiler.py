"""Traces of a few training steps. Imports jax inside functions only."""

import argparse
import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rdrop_jax.training.callbacks import Callback

_logger = logging.getLogger(__name__)


def steps(text: str) -> tuple[int, int]:
    """Parse START:STEPS; for use as argparse's ``type``."""
    match = re.fullmatch(r"([1-9][0-9]{0,8}):([1-9][0-9]{0,8})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected START:STEPS, two positive integers such as 10:5, got {text!r}"
        )
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def traced(start: int, count: int, last: int, folder: Path) -> Iterator[Callback]:
    """Trace ``count`` steps of a training loop with `jax.profiler`.

    A run that resumes after step ``start`` is traced from its first step. A run that
    ends early keeps the trace of its last steps.

    Args:
      start: step after which the trace begins.
      count: number of steps.
      last: last step of the run, which ends the trace.
      folder: folder for the trace.

    Yields:
      The callback to give to the training loop.
    """
    end = 0  # 0 before the trace, -1 after it

    def stop_trace() -> None:
        import jax

        nonlocal end
        jax.profiler.stop_trace()
        end = -1
        _logger.info("profile: trace in %s", folder)

    def after_step(step: int, state: Any) -> None:
        import jax

        nonlocal end
        if end == 0 and start <= step < last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(folder)
            end = min(step + count, last)
            _logger.info("profile: tracing steps %d to %d", step + 1, end)
        elif step == end:
            jax.block_until_ready(state)
            stop_trace()

    try:
        yield Callback(step=after_step)
    finally:
        if end > 0:
            stop_trace()
        elif end == 0:
            _logger.info("profile: no trace, because no step followed step %d", start)
