"""Forwards of an R-Drop step whose passes have different dropout rates."""

from collections.abc import Callable

from ml_collections import ConfigDict

from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.core.passes import Forward


def pass_forwards(
    config: ConfigDict, make_forward: Callable[[ConfigDict], Forward]
) -> tuple[Forward, ...]:
    """Make the forward of each pass from its rate in ``rdrop.dropouts``.

    Args:
      config: config of the run.
      make_forward: makes a forward of the model that a config describes.

    Returns:
      One forward per pass; empty if all passes have the rate ``model.dropout``.
    """
    r = config.rdrop
    if resolve_num_passes(r.alpha, r.num_passes) == 1:
        return ()
    forwards = []
    for rate in r.dropouts:
        changed = config.copy_and_resolve_references()
        changed.model.dropout = float(rate)
        forwards.append(make_forward(changed))
    return tuple(forwards)
