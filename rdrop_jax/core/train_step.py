"""The pure training step: passes, objective, gradient, optimizer update."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rdrop_jax.core.accumulate import (
    Loss,
    LossAndGrad,
    first_microbatch,
    make_loss_and_grad,
)
from rdrop_jax.core.alpha import check_alpha, resolve_num_passes
from rdrop_jax.core.losses import at_least_float32
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.passes import (
    Batch,
    Forward,
    Key,
    Params,
    View,
    forward_passes,
    pass_keys,
    warn_if_equal,
    with_views,
)
from rdrop_jax.core.train_state import TrainState, check_params

Alpha = float | Callable[[Any], Any]  # a schedule maps the step to a scalar
Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Mean]]]


def make_train_step(
    forward: Forward | Sequence[Forward],
    tx: optax.GradientTransformation,
    loss: Loss,
    *,
    alpha: Alpha,
    num_passes: int | None = None,
    every: int = 1,
    objective_scale: str = "sum",
    accum_steps: int = 1,
    ema: float = 0.0,
    how: str = "auto",
    out_axes: Any = 0,
    gather: Callable[[Params], Params] | None = None,
    check_passes: bool = False,
    views: View | Sequence[View] | None = None,
) -> Step:
    """Make ``step(state, batch) -> (state, metrics)``, pure and ready for `jax.jit`.

    Step t folds t into the root key, splits it into one key per pass, and runs the
    passes, the objective and one optimizer update. No random state is stored.

    Args:
      forward: ``(params, batch, key) -> outputs``, or a sequence with one per pass.
      tx: optimizer; its ``update`` receives the loss as ``value``, which
        `optax.contrib.reduce_on_plateau` needs.
      loss: ``(stacked outputs, batch, **objective) -> (scalar, metrics)``, for instance
        ``lambda z, batch, **objective: rdrop_loss(z, batch["label"], **objective)``.
        The step specifies the objective: ``alpha`` at this step, ``objective_scale``,
        and ``denominators`` if it accumulates. Metrics are a dict of `Mean`, whose
        weights must depend only on the batch. ``accum_steps`` above 1 needs ``ce`` and
        ``kl`` and sums all metrics; ``every`` above 1 needs ``kl``.
      alpha: weight of the consistency term, or a schedule ``step -> alpha``. A constant
        is checked; a schedule that becomes negative makes the loss NaN.
      num_passes: number of passes; None means 1 for the constant alpha 0, else 2.
      every: interval of R-Drop steps: 0, every, 2 every, ... The remaining steps make
        one pass with the first ``forward`` at alpha 0, and do not count in the mean of
        ``kl``.
      objective_scale: "sum" or "mean" over passes.
      accum_steps: microbatches per step, each ``batch / accum_steps`` rows. Losses are
        normalized by the weights of the full batch, so the update is that of the full
        batch.
      ema: decay of the exponential moving average of parameters; 0 disables it.
      how: see `forward_passes`.
      out_axes: see `forward_passes`.
      gather: function that all-gathers sharded parameters, once for all passes.
      check_passes: at step 0, warn if all passes give the same outputs, because dropout
        is off or its key does not reach the model. Emits
        `rdrop_jax.core.passes.EqualPassesWarning`. The check runs the first microbatch
        once more, at step 0 only. Its host callback keeps the step out of jax's
        persistent compilation cache. `check_stochastic`, called once before training,
        needs no callback.
      views: augmentation of the inputs of each pass; see `forward_passes`.

    Returns:
      The step function. Its metrics are ``loss, ce, kl, grad_norm`` as `Mean`.

    Raises:
      ValueError: an option out of range; at trace time an indivisible batch, metrics
        of the wrong type, or parameters that are not differentiable.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from rdrop_jax import init_state, rdrop_loss
      >>> def forward(w, batch, key):
      ...     keep = jax.random.bernoulli(key, 0.9, batch["x"].shape)
      ...     return (batch["x"] * keep) @ w
      >>> def loss(logits, batch, **objective):
      ...     return rdrop_loss(logits, batch["label"], **objective)
      >>> tx = optax.sgd(0.1)
      >>> step = jax.jit(make_train_step(forward, tx, loss, alpha=1.0))
      >>> state = init_state(jnp.ones((4, 3)), tx, jax.random.key(0))
      >>> batch = {"x": jnp.ones((2, 4)), "label": jnp.array([0, 1])}
      >>> state, metrics = step(state, batch)
      >>> int(state.step)
      1
    """
    if not callable(alpha):
        check_alpha(alpha)
    k = resolve_num_passes(alpha, num_passes)
    _check_options(forward, k, every, accum_steps, ema)
    forward = with_views(forward, views, k)

    alternates = every > 1 and k > 1
    needs = ("ce", "kl") if accum_steps > 1 else ("kl",) if alternates else ()
    passes = _passes(forward, how, out_axes, gather)
    make = functools.partial(make_loss_and_grad, passes, loss, needs=needs)
    make = functools.partial(make, objective_scale=objective_scale)
    loss_and_grad = make(alpha=alpha, accum_steps=accum_steps)
    if alternates:
        plain = make(alpha=0.0, accum_steps=accum_steps)
        loss_and_grad = _alternating(loss_and_grad, plain, every)

    def train_step(
        state: TrainState, batch: Batch
    ) -> tuple[TrainState, dict[str, Mean]]:
        if (state.ema_params is None) != (ema == 0.0):
            kept = "none" if state.ema_params is None else "one"
            raise ValueError(f"ema={ema}, but the state keeps {kept}: see init_state")
        check_params(state.params)
        keys = pass_keys(jax.random.fold_in(state.key, state.step), k)
        if check_passes and k > 1:
            few = first_microbatch(batch, accum_steps)
            params = gather(state.params) if gather else state.params
            warn_if_equal(forward, params, few, keys, due=state.step == 0)
        (total, metrics), grads = loss_and_grad(state.params, batch, keys, state.step)
        new_state, grad_norm = _updated(state, total, grads, tx, ema)
        one = jnp.ones_like(total)
        return new_state, metrics | {
            "loss": Mean(total, one),
            "grad_norm": Mean(grad_norm, one),
        }

    return train_step


def _passes(
    forward: Forward | Sequence[Forward],
    how: str,
    out_axes: Any,
    gather: Callable[[Params], Params] | None,
) -> Callable[[Params, Batch, Key], Any]:
    """Make ``(params, batch, keys) -> outputs``, with one pass for each key."""

    def passes(params: Params, batch: Batch, keys: Key) -> Any:
        params = gather(params) if gather else params
        count = keys.shape[0]
        return forward_passes(
            forward if callable(forward) else forward[:count],
            params,
            batch,
            keys,
            num_passes=count,
            how=how,
            out_axes=out_axes,
        )

    return passes


def make_eval_step(
    forward: Forward, metrics: Callable[[Any, Batch], Mapping[str, Mean]]
) -> Callable[[Params, Batch], dict[str, Mean]]:
    """Make ``step(params, batch) -> metrics``, with one pass and dropout off.

    Args:
      forward: ``(params, batch, None) -> outputs``.
      metrics: ``(outputs of one pass, batch) -> {name: Mean}``; must mask padding rows.

    Returns:
      The step, pure and ready for `jax.jit`. Merge its results over batches with
      `rdrop_jax.core.metrics.merge`.
    """

    def eval_step(params: Params, batch: Batch) -> dict[str, Mean]:
        return dict(metrics(forward(params, batch, None), batch))

    return eval_step


def _check_options(
    forward: Forward | Sequence[Forward],
    num_passes: int,
    every: int,
    accum_steps: int,
    ema: float,
) -> None:
    if not callable(forward) and len(forward) != num_passes:
        raise ValueError(
            f"forward must be one function or one for each of {num_passes} passes: "
            f"found {len(forward)}"
        )
    if every < 1:
        raise ValueError(f"every must be at least 1: found {every}")
    if accum_steps < 1:
        raise ValueError(f"accum_steps must be at least 1: found {accum_steps}")
    if not 0.0 <= ema < 1.0:
        raise ValueError(f"ema must be in [0, 1): found {ema}")


def _alternating(all_passes: LossAndGrad, one: LossAndGrad, every: int) -> LossAndGrad:
    """Run all passes if ``every`` divides the step, else only the first."""

    def plain(params: Params, batch: Batch, keys: Key, step: Array) -> Any:
        (total, metrics), grads = one(params, batch, keys[:1], step)
        none = jax.tree.map(jnp.zeros_like, metrics["kl"])
        return (total, metrics | {"kl": none}), grads

    def alternating(params: Params, batch: Batch, keys: Key, step: Array) -> Any:
        due = step % every == 0
        return jax.lax.cond(due, all_passes, plain, params, batch, keys, step)

    return alternating


def _norm(tree: Params) -> Array:
    """Return the norm of all leaves, whose squares may overflow in half precision."""
    return optax.tree.norm(
        jax.tree.map(lambda x: at_least_float32(jnp.asarray(x)), tree)
    )


def _updated(
    state: TrainState,
    total: Array,
    grads: Params,
    tx: optax.GradientTransformation,
    ema: float,
) -> tuple[TrainState, Array]:
    """Return the state after one optimizer update, and the gradient norm."""
    updates, opt_state = optax.with_extra_args_support(tx).update(
        grads, state.opt_state, state.params, value=total
    )
    params = optax.apply_updates(state.params, updates)
    grad_norm = _norm(grads)
    # Check the update too: a finite gradient times a huge learning rate may overflow.
    norms = (total, grad_norm, _norm(updates))
    good = jnp.all(jnp.isfinite(jnp.stack(norms)))
    first_bad = jnp.where(
        good | (state.first_bad_step >= 0), state.first_bad_step, state.step
    )
    new_state = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        first_bad_step=first_bad,
        ema_params=_averaged(state.ema_params, params, ema),
    )
    return new_state, grad_norm


def _averaged(average: Params | None, params: Params, decay: float) -> Params | None:
    if average is None:
        return None
    wide = jax.tree.map(lambda x, a: x.astype(a.dtype), params, average)
    return optax.incremental_update(wide, average, 1.0 - decay)
