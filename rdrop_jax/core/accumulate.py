"""Loss and gradient of a batch, at once or accumulated over microbatches."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rdrop_jax.core.metrics import Mean, Pair
from rdrop_jax.core.objective import Denominators
from rdrop_jax.core.passes import Batch, Key, Params

# loss(outputs stacked over passes, batch, **objective) -> (scalar, {name: Mean}), like
# `rdrop_loss`; objective contains alpha, objective_scale and denominators.
Loss = Callable[..., tuple[Array, dict[str, Mean]]]
# (params, batch, keys of the passes) -> outputs stacked over passes
Passes = Callable[[Params, Batch, Key], Any]
# (params, batch, keys, step) -> ((loss, metrics), grads)
LossAndGrad = Callable[[Params, Batch, Key, Array], Any]


def make_loss_and_grad(
    passes: Passes,
    loss: Loss,
    *,
    alpha: Any,
    objective_scale: str,
    accum_steps: int,
    needs: tuple[str, ...] = (),
) -> LossAndGrad:
    """Make ``(params, batch, keys, step) -> ((loss, metrics), grads)``.

    Args:
      passes: function that runs the model once per key.
      loss: loss function of the outputs of all passes.
      alpha: weight of the consistency term, or a schedule ``step -> alpha``.
      objective_scale: "sum" or "mean" over passes.
      accum_steps: number of microbatches, normalized by the full batch's weights.
      needs: names of required metrics, each a `Mean`.

    Returns:
      The loss-and-gradient function.
    """

    def loss_of(
        outputs: Any,
        batch: Batch,
        step: Array,
        denominators: Denominators | None = None,
    ) -> tuple[Array, dict[str, Mean]]:
        found = loss(
            outputs,
            batch,
            alpha=alpha(step) if callable(alpha) else alpha,
            objective_scale=objective_scale,
            denominators=denominators,
        )
        return _checked(found, needs, accum_steps)

    def loss_fn(params: Params, batch: Batch, keys: Key, *options: Any) -> Any:
        return loss_of(passes(params, batch, keys), batch, *options)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def loss_and_grad(params: Params, batch: Batch, keys: Key, step: Array) -> Any:
        if accum_steps == 1:
            return grad_fn(params, batch, keys, step)
        outputs = jax.eval_shape(passes, params, batch, keys)
        zeros = jax.tree.map(jnp.zeros_like, outputs)
        # Denominators depend only on the batch, so the loss of zero outputs gives them.
        # The compiler removes the rest of that loss.
        _, metrics = loss_of(zeros, batch, step)
        whole = Pair(metrics["ce"].weight, metrics["kl"].weight)

        def part(micro: Batch, index: Array) -> Any:
            micro_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
            return grad_fn(params, micro, micro_keys, step, whole)

        return _sum_over(part, _microbatches(batch, accum_steps))

    return loss_and_grad


def _checked(
    found: Any, needs: tuple[str, ...], accum_steps: int
) -> tuple[Array, dict[str, Mean]]:
    """Check the type and required metrics of a loss; return its value and metrics."""
    contract = "loss must return (scalar, {name: Mean}), as rdrop_loss does"
    if not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"{contract}: found {type(found).__name__}")
    total, metrics = found
    if not isinstance(metrics, Mapping):
        raise ValueError(f"{contract}: found metrics of {type(metrics).__name__}")
    missing = [name for name in needs if name not in metrics]
    if missing:
        raise ValueError(
            f"{contract}: found metrics {sorted(metrics)} without {missing}, which "
            "accum_steps and every need. Return the metrics of rdrop_loss too"
        )
    means = metrics if accum_steps > 1 else needs
    others = [name for name in means if not isinstance(metrics[name], Mean)]
    if others:
        raise ValueError(
            f"{contract}: found {others} of another type, which cannot be averaged. "
            "Return rdrop_jax.Mean(total, weight)"
        )
    return total, dict(metrics)


def _microbatches(batch: Batch, accum_steps: int) -> Batch:
    """Split a batch into microbatches: rows i, i + n, i + 2n, ... form microbatch i.

    The strides let every device split its local rows, so no rows move. Scalars are in
    every microbatch.
    """

    def split(x: Array) -> Array:
        if jnp.ndim(x) == 0:
            return jnp.broadcast_to(x, (accum_steps,))
        if x.shape[0] % accum_steps:
            raise ValueError(
                f"accum_steps={accum_steps} must divide the batch: found "
                f"{x.shape[0]} rows"
            )
        parts = x.reshape(x.shape[0] // accum_steps, accum_steps, *x.shape[1:])
        return jnp.swapaxes(parts, 0, 1)

    return jax.tree.map(split, batch)


def first_microbatch(batch: Batch, accum_steps: int) -> Batch:
    """Return the first of ``accum_steps`` microbatches, or the batch itself if 1."""
    if accum_steps == 1:
        return batch
    return jax.tree.map(lambda x: x[0], _microbatches(batch, accum_steps))


def _sum_over(part: Callable[[Batch, Array], Any], micro: Batch) -> Any:
    """Sum ``part(micro[i], i)`` sequentially, with floats in at least float32."""
    count = jax.tree.leaves(micro)[0].shape[0]
    first = jax.tree.map(lambda x: x[0], micro)
    index = jnp.arange(count)
    one = jax.eval_shape(part, first, index[0])

    def zero(x: jax.ShapeDtypeStruct) -> Array:
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        dtype = jnp.promote_types(x.dtype, jnp.float32) if floats else x.dtype
        return jnp.zeros_like(x, dtype)

    zeros = jax.tree.map(zero, one)

    def body(total: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(*item)), None

    total = jax.lax.scan(body, zeros, (micro, index))[0]
    return jax.tree.map(lambda t, x: t.astype(x.dtype), total, one)
