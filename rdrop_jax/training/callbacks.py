"""Functions of a caller that the training loop calls. Needs no jax."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Callback:
    """Functions that the training loop calls, on every process.

    Attributes:
      log: ``(step, metrics)``, after the training metrics of a step are logged. Metrics
        without data are absent, such as ``ce`` without a labelled row.
      validation: ``(step, scores)``, after a validation.
      save: ``(step, state)``, after the arrays of a checkpoint are copied off the
        devices. The next step overwrites the state: copy the arrays to keep.
      step: ``(step, state)``, after every step. Reading the state waits for the device.
    """

    log: Callable[[int, Mapping[str, float]], object] | None = None
    validation: Callable[[int, Mapping[str, float]], object] | None = None
    save: Callable[[int, Any], object] | None = None
    step: Callable[[int, Any], object] | None = None


def notify(
    callbacks: Iterable[Callback],
    event: Literal["log", "validation", "save", "step"],
    step: int,
    value: Any,
) -> None:
    """Call the functions for an event, in the order of the callbacks."""
    for callback in callbacks:
        if function := getattr(callback, event):
            function(step, value)
