"""Interleaved timing of arms in one process, so that noise affects all arms equally."""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Arm = Callable[[], object]


def interleaved(arms: Mapping[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each arm per round; a first round warms up and is dropped.

    Args:
      arms: calls by name, each of which returns when its work is done.
      rounds: number of measured rounds.

    Returns:
      One list per arm, in the order of rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            begin = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - begin)
    return {name: found[1:] for name, found in seconds.items()}


def repeated(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Arm:
    """Make a call that runs one more training step, which donates its state."""
    import jax

    current = [state]

    def call() -> None:
        current[0], _ = step(current[0], batch)
        jax.block_until_ready(current[0])

    return call


def ratio(of: list[float], to: list[float]) -> str:
    """Format ``median (minimum to maximum)`` of the ratios of each round."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    middle = statistics.median(ratios)
    return f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table(seconds: dict[str, list[float]], ours: str) -> str:
    """Format a Markdown table of minimum milliseconds and ratios to ours."""
    lines = [
        "| arm | ms, minimum | times ours, median (range) |",
        "| --- | --- | --- |",
    ]
    for name, found in seconds.items():
        times = ratio(found, seconds[ours])
        lines.append(f"| {name} | {min(found) * 1e3:.1f} | {times} |")
    return "\n".join(lines)


def import_torch() -> Any:
    """Import PyTorch with one thread per core; None if it is not installed."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install 'rdrop-jax[bench]'): left out")
        return None
    # Otherwise its idle threads spin on the cores that the next arm needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    return torch
