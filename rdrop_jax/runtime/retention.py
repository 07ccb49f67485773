"""Choice of the checkpoints that stay. Needs no jax."""

from typing import Any


class Kept:
    """What orbax leaves when it prunes: the newest, and the best.

    The best of the save before stays too, as long as the newest is not sealed.

    Args:
      newest: how many.
    """

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._bests = (-1, -1)

    def follow(self, best_step: int) -> None:
        """Takes the best of the save that comes next."""
        self._bests = (self._bests[1], best_step)

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """orbax's question, for checkpoints in the order of their steps."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self._newest :], *self._bests}
        return [step in kept for step in steps]
