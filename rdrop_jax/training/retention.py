"""Checkpoint retention policy. Needs no jax."""

from typing import Any


class Kept:
    """Preservation policy for orbax: keep the newest checkpoints and the best.

    The best of the previous save is kept too, while the newest is not yet complete.

    Args:
      newest: number of newest checkpoints to keep.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._bests = (-1, -1)

    def follow(self, best_step: int) -> None:
        """Set the best step for the next save."""
        self._bests = (self._bests[1], best_step)

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Return which checkpoints to keep; called by orbax with steps in order."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._newest :], *self._bests}
        return [step in kept for step in steps]
