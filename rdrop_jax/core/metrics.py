"""Exact weighted means that stay on the device until they are read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rdrop_jax.core.losses import at_least_float32


class Pair(NamedTuple):
    """One value for each term of the objective.

    Attributes:
      ce: value of the cross entropy.
      kl: value of the consistency term.
    """

    ce: Any
    kl: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """Weighted mean stored as numerator and denominator.

    Totals and weights are summed over steps, microbatches and hosts, so the mean is
    exact, unlike an average of averages. `compute` returns the scalar array;
    ``float(mean)``, ``mean.item()``, ``round(mean, 3)``, ``f"{mean:.3f}"``,
    `numpy.asarray` and `jax.numpy.asarray` call it.

    Attributes:
      total: scalar, ``sum(weight * value)``.
      weight: scalar, ``sum(weight)``.

    Example:
      >>> import jax.numpy as jnp
      >>> a = mean(jnp.array([1.0, 2.0]))
      >>> b = mean(jnp.array([6.0, 9.0]), weight=jnp.array([1.0, 0.0]))
      >>> float(a.merge(b).compute())
      3.0
      >>> f"{a.merge(b):.2f}"
      '3.00'
    """

    total: Any  # no shape type: pytrees are rebuilt with leaves of any type
    weight: Any

    def merge(self, other: "Mean") -> "Mean":
        """Return the mean over the positions of both."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Float[Array, ""]:
        """Return ``total / weight``, or 0 if the weight is 0."""
        empty = self.weight == 0
        return jnp.where(empty, 0.0, self.total / jnp.where(empty, 1.0, self.weight))

    def __float__(self) -> float:
        return float(self.compute())

    def item(self) -> float:
        """Return the mean as a Python float, like `jax.Array.item`."""
        return float(self)

    def __round__(self, digits: int | None = None) -> float | int:
        return round(float(self), digits)

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else str(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.compute(), dtype=dtype, copy=copy)

    def __jax_array__(self) -> Array:
        return self.compute()


def mean(
    values: Float[Array, "..."],
    *,
    where: Bool[Array, "..."] | None = None,
    weight: Float[Array, "..."] | None = None,
) -> Mean:
    """Compute the weighted mean of per-position values.

    Args:
      values: one number per position; may be NaN where the weight is 0.
      where: positions that count (True keeps).
      weight: float weight per position.

    Returns:
      ``Mean(sum(w * values), sum(w))`` with ``w = where * weight``.
    """
    # Sums in half precision would stop growing.
    values = at_least_float32(values)
    w = jnp.ones_like(values) if weight is None else weight.astype(values.dtype)
    if where is not None:
        w = jnp.where(where, w, 0.0)
    return Mean(jnp.sum(jnp.where(w == 0, 0.0, values) * w), jnp.sum(w))


def merge(a: Mapping[str, Mean], b: Mapping[str, Mean]) -> dict[str, Mean]:
    """Merge two sets of metrics with the same names."""
    return {name: a[name].merge(b[name]) for name in a}


def compute(metrics: Mapping[str, Mean]) -> dict[str, float]:
    """Fetch metrics from the device and divide on the host in float64."""
    return {
        name: float(np.float64(m.total) / np.float64(m.weight)) if m.weight else 0.0
        for name, m in jax.device_get(dict(metrics)).items()
    }


def perplexity(loss: float) -> float:
    """Return ``exp(loss)``; infinity if that is above the largest float.

    Args:
      loss: mean negative log-likelihood, in nats.

    Example:
      >>> perplexity(0.0), perplexity(1000.0)
      (1.0, inf)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
