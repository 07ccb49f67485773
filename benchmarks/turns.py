"""Times arms in turns in one process: what one round's noise hits, it hits in all."""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Arm = Callable[[], object]


def in_turns(arms: Mapping[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm in each round; a first round warms up and is dropped.

    Args:
      arms: name to a call that returns when its work is done.
      rounds: how many to keep.

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


def updates(step: Callable[[Any, Any], Any], state: Any, batch: Any) -> Arm:
    """A call that makes one more update, of a step that donates its state."""
    import jax

    held = [state]

    def call() -> None:
        held[0], _ = step(held[0], batch)
        jax.block_until_ready(held[0])

    return call


def ratio(of: list[float], to: list[float]) -> str:
    """``median (least to most)`` of the ratios of each round."""
    ratios = [a / b for a, b in zip(of, to, strict=True)]
    middle = statistics.median(ratios)
    return f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def table(seconds: dict[str, list[float]], ours: str) -> str:
    """A Markdown table: least milliseconds, and the ratio of each arm to ours."""
    lines = ["| arm | ms, least | times ours, median (range) |", "| --- | --- | --- |"]
    for name, found in seconds.items():
        times = ratio(found, seconds[ours])
        lines.append(f"| {name} | {min(found) * 1e3:.1f} | {times} |")
    return "\n".join(lines)


def by_torch() -> Any:
    """PyTorch on as many threads as there are cores; None where it is missing."""
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install 'rdrop-jax[bench]'): left out")
        return None
    # Else its idle threads go on spinning on the cores that the next arm needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    return torch
