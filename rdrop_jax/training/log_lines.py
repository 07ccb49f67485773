"""Log lines of a run, and the record of its start for result.json."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jax
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.training.task import Evaluator, RandomAccess, Task
from rdrop_jax.versions import devices, versions


def utc_now() -> str:
    """Return the date and time in ISO 8601, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_record(started: str) -> dict[str, Any]:
    """Return versions, devices, command and dates of a run, for result.json.

    Args:
      started: date and time of this start, from `utc_now`.
    """
    return {
        "versions": versions(),
        "devices": devices(),
        "device_count": jax.device_count(),
        "command": list(sys.argv),
        "started": started,
        "finished": utc_now(),
    }


def announced(
    title: str, evaluate: Evaluator, params: Params, say: Callable[[str], None]
) -> dict[str, float]:
    """Return scores; log the duration if it exceeds five seconds."""
    clock = time.perf_counter()
    scores = evaluate(params)
    seconds = time.perf_counter() - clock
    if seconds > 5:
        say(f"{title} in {seconds:.0f} s")
    return scores


def start_lines(config: ConfigDict, step: int) -> list[str]:
    """Return lines with versions, devices and the source of the parameters."""
    found = versions()
    if step:
        weights = f"the checkpoint of step {step}"
    elif config.init_from:
        weights = config.init_from
    else:
        weights = "random initialization (init_from is empty)"
    size = config.model.get("variant", "") or ""
    return [
        f"rdrop_jax {found['rdrop_jax']}, jax {found['jax']}; {devices()}"
        f", processes: {jax.process_count()}",
        f"weights: {weights}; model: {f'{config.model.name} {size}'.strip()}",
    ]


def data_line(task: Task, data: RandomAccess) -> str:
    """Return one line with the sizes of the splits read so far and steps per epoch.

    Test data are read only at the end, so that their size is not included.
    """
    sizes = "".join(
        f"{name} {task.size(name)}, " for name in ("train", "validation") if task.size
    )
    return f"data: {sizes}{data.steps_per_epoch:.6g} steps per epoch"
