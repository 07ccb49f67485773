"""Loss of rows whose gradients are computed together with the value."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from rdrop_jax.core.losses import weighted
from rdrop_jax.core.metrics import Pair

# (inputs, labels, weights, scales, with_gradient) -> (values [positions], gradients of
# the loss in the structure of the inputs, or None without with_gradient)
RowsFunction = Callable[[Any, Array, Pair, Pair, bool], tuple[Pair, Any]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def fused_objective(
    rows: RowsFunction,
    inputs: Any,
    labels: Integer[Array, " positions"],
    weights: Pair,
    scales: Pair,
) -> tuple[Float[Array, ""], Pair]:
    """Compute weighted cross entropy plus weighted divergence.

    Supports first derivatives in reverse mode, in inputs, weights and scales.

    Args:
      rows: function that computes both terms per position, and the gradients.
      inputs: pytree of arrays.
      labels: class ids.
      weights: weights [positions]. If the weight of the divergence is 0, the position
        is ignored; if that of the cross entropy is 0, the label may be anything.
      scales: scalar factors of the two weighted sums.

    Returns:
      The loss, and the two sums, which carry no gradient.
    """
    return weighted_sums(
        rows(inputs, labels, weights, scales, False)[0], weights, scales
    )


def _forward(
    rows: RowsFunction, inputs: Any, labels: Array, weights: Pair, scales: Pair
) -> tuple[Any, Any]:
    values, gradients = rows(inputs, labels, weights, scales, True)
    found = weighted_sums(values, weights, scales)
    d_weights = Pair(*map(jnp.multiply, scales, values))
    return found, (gradients, d_weights, found[1])


def _backward(rows: RowsFunction, kept: Any, cotangents: Any) -> Any:
    c = cotangents[0]
    inputs, weights, scales = jax.tree.map(lambda g: (g * c).astype(g.dtype), kept)
    return inputs, None, weights, scales


fused_objective.defvjp(_forward, _backward)


def weighted_sums(
    values: Pair, weights: Pair, scales: Pair
) -> tuple[Float[Array, ""], Pair]:
    """Return the loss and the weighted sums of cross entropy and divergence."""
    sums = Pair(
        *(jnp.sum(weighted(w, x)) for w, x in zip(weights, values, strict=True))
    )
    return weighted(scales.ce, sums.ce) + weighted(scales.kl, sums.kl), sums
