"""Log lines of a run, and the record of its start for result.json."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from rdrop_jax.training.task import RandomAccess, Task
from rdrop_jax.versions import devices, versions

_logger = logging.getLogger(__name__)
T = TypeVar("T")


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


def timed(title: str, call: Callable[..., T], *args: Any) -> T:
    """Return ``call(*args)``; log the duration if it exceeds five seconds."""
    clock = time.perf_counter()
    found = call(*args)
    seconds = time.perf_counter() - clock
    if seconds > 5:
        _logger.info("%s in %.0f s", title, seconds)
    return found


def start_lines(config: ConfigDict, step: int) -> list[str]:
    """Return lines with versions, devices, the source of the parameters, and warnings.

    Args:
      config: config of the run, with durations in steps.
      step: step at which the run starts or resumes.
    """
    unused = unused_gpu()
    found = versions()
    if step:
        weights = f"the checkpoint of step {step}"
    elif config.init_from:
        weights = config.init_from
    else:
        weights = "random initialization (init_from is empty)"
    size = config.model.get("size", "") or ""
    return [
        f"rdrop_jax {found['rdrop_jax']}, jax {found['jax']}; {devices()}"
        f", processes: {jax.process_count()}",
        *([unused] if unused else []),
        f"weights: {weights}; model: {f'{config.model.name} {size}'.strip()}",
        *(
            f"{name}={warmup} is longer than total_steps={config.total_steps}: the run "
            "ends before the end of the warmup"
            for name, warmup in (
                ("optimizer.warmup", config.optimizer.warmup),
                ("rdrop.alpha_warmup", config.rdrop.alpha_warmup),
            )
            if warmup > config.total_steps
        ),
    ]


def unused_gpu() -> str:
    """Return a line on an NVIDIA GPU that jax lacks the packages for, or ""."""
    program = shutil.which("nvidia-smi")
    chosen = os.environ.get("JAX_PLATFORMS")
    if chosen or program is None or jax.default_backend() != "cpu":
        return ""
    try:
        found = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if not found.stdout.startswith("GPU "):
        return ""
    return (
        "devices: expected the GPU that nvidia-smi finds, got the CPU. Run "
        f'`{sys.executable} -m pip install "jax[cuda12]=={jax.__version__}"`'
    )


def data_line(task: Task, data: RandomAccess, scored: Iterable[str]) -> str:
    """Return one line with the sizes of the splits and the steps per epoch."""
    size = task.report.size
    sizes = "".join(f"{name} {size(name)}, " for name in ("train", *scored) if size)
    return f"data: {sizes}{data.steps_per_epoch:.6g} steps per epoch"


def parameter_table(params: Any) -> str:
    """Return a table with one line per parameter; repeated blocks share a line."""
    rows: dict[tuple[str, str], int] = {}
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        row = (re.sub(r"_\d+", "_*", name), f"{shape} {leaf.dtype}")
        rows[row] = rows.get(row, 0) + 1
        total += leaf.size
    lines = [
        f"  {name:<44} {shape:<20}" + (f" x {n}" if n > 1 else "")
        for (name, shape), n in rows.items()
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"  {total:,} parameters"])


def train_line(
    values: dict[str, float], step: int, total: int, examples: float, eta: str
) -> str:
    """Format the training metrics as one line for the terminal."""
    parts = [f"step {step}/{total}"]
    parts += [f"{name} {values[name]:.4f}" for name in ("ce", "kl") if name in values]
    parts.append(f"lr {values['lr']:.2e}")
    if "steps_per_second" in values:
        parts.append(f"{values['steps_per_second'] * examples:.0f} examples/s")
    parts.append(f"ETA {eta}")
    if (wait := values.get("data_wait", 0.0)) > 0.05:
        parts.append(f"{wait:.0%} of the time waiting for data")
    return "  ".join(parts)


def scores_line(title: str, scores: dict[str, float]) -> str:
    """Format scores as one line for the terminal."""
    return title + "".join(f"  {name} {value:.5g}" for name, value in scores.items())
