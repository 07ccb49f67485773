"""Optax optimizers and schedules from a config."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

Schedule = Callable[[Array | int], Array | float]


def make_schedule(optimizer: ConfigDict, total_steps: int) -> Schedule:
    """Build a learning-rate schedule: linear warmup, then the named decay.

    Schedules, over the steps that remain after the warmup:
      constant: constant at the peak.
      linear, polynomial: polynomial decay to ``end_lr`` with power 1 or ``power``.
      cosine: half a cosine to ``end_lr``.
      inverse_sqrt: ``lr * sqrt(warmup / step)`` (fairseq, NMT).
      cosine_restarts: cosines from ``lr`` to ``end_lr`` over ``period`` steps, each
        ``period_mult`` times longer and ``shrink`` times lower than the last (fairseq).

    Args:
      optimizer: config group ``optimizer``, with durations in steps.
      total_steps: length of the run.

    Returns:
      ``step -> learning rate``, for use inside jit and on the host.
    """
    o = optimizer
    rest = max(total_steps - o.warmup, 1)
    if o.schedule == "constant":
        decay = optax.constant_schedule(o.lr)
    elif o.schedule == "linear":
        decay = optax.linear_schedule(o.lr, o.end_lr, rest)
    elif o.schedule == "polynomial":
        decay = optax.polynomial_schedule(o.lr, o.end_lr, o.power, rest)
    elif o.schedule == "cosine":
        decay = optax.cosine_decay_schedule(o.lr, rest, _ratio(o.end_lr, o.lr))
    elif o.schedule == "inverse_sqrt":
        decay = _inverse_sqrt(o.lr, max(o.warmup, 1))
    elif o.schedule == "cosine_restarts":
        decay = _cosine_restarts(o, rest)
    else:
        raise ValueError(f"optimizer.schedule: no schedule {o.schedule!r}")
    if o.warmup == 0:
        return decay
    warmup = optax.linear_schedule(o.warmup_init, o.lr, o.warmup)
    return optax.join_schedules([warmup, decay], [o.warmup])


def _ratio(end: float, start: float) -> float:
    return end / start if start else 0.0


def _inverse_sqrt(lr: float, warmup: int) -> Schedule:
    return lambda t: lr * jnp.sqrt(warmup / (warmup + t))


def _cosine_restarts(o: ConfigDict, rest: int) -> Schedule:
    cosines, boundaries, end, number = [], [], 0, 0
    length = float(o.period or rest)
    while end < rest:
        scale = o.shrink**number
        steps = max(round(length), 1)
        cosines.append(
            optax.cosine_decay_schedule(o.lr * scale, steps, _ratio(o.end_lr, o.lr))
        )
        end += steps
        boundaries.append(end)
        length, number = length * o.period_mult, number + 1
    return optax.join_schedules(cosines, boundaries[:-1])


def make_alpha(alpha: float, warmup: int) -> float | Schedule:
    """Return alpha, as a schedule that rises linearly over ``warmup`` steps if any."""
    if warmup == 0 or alpha == 0:
        return alpha
    return optax.linear_schedule(0.0, alpha, warmup)


def _matrices(params: PyTree) -> PyTree:
    """Return a mask that is True for matrices: no biases, no norm scales."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


_BLOCK = re.compile(r"(?:^|(.*)/)block_(\d+)/")
_BEFORE = re.compile(
    r"(?:^|/)((source_)?embedding|(embedding|projection)_\d+|(source|target)_embed|"
    r"embedding_norm|tokens|types|positions|place|class_token|"
    r"relative|relative_norm|relative_bias|conv|conv_norm)(?:/|$)"
)


def layer_scales(params: PyTree, decay: float) -> PyTree:
    """Compute layer-wise learning-rate factors (Howard and Ruder, 2018).

    The factor is 1 for layers after the last block, ``decay ** (n - i)`` for block i of
    n, and ``decay ** (n + 1)`` for embeddings. An encoder and a decoder count their own
    blocks; n of the embeddings is the larger count.

    Args:
      params: parameters, with blocks named ``block_0``, ``block_1``, ...
      decay: layer-wise decay factor in (0, 1].

    Returns:
      A pytree of factors, with the structure of ``params``.
    """
    names = jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), params
    )
    counts: dict[str, int] = {}
    for name in jax.tree.leaves(names):
        if match := _BLOCK.search(name):
            counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    most = max(counts.values(), default=0)

    def scale(name: str) -> float:
        if match := _BLOCK.search(name):
            return float(decay ** (counts[match[1]] - int(match[2])))
        return float(decay ** (most + 1)) if _BEFORE.search(name) else 1.0

    return jax.tree.map(scale, names)


def _by_layer(decay: float) -> optax.GradientTransformation:
    def update(updates: PyTree, params: PyTree) -> PyTree:
        del params
        return jax.tree.map(lambda u, s: u * s, updates, layer_scales(updates, decay))

    return optax.stateless(update)


def _weight_decay(rate: float, mask: Any) -> optax.GradientTransformation:
    """Decay weights, except the output bias of pretrained files, which is constant.

    A mask for it would change the stored state of optimizers without one.
    """
    inner = optax.add_decayed_weights(rate, mask)

    def update(
        updates: PyTree, state: optax.OptState, params: PyTree = None
    ) -> tuple[PyTree, optax.OptState]:
        decayed, state = inner.update(updates, state, params)

        def chosen(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path[-1:], simple=True)
            return old if name == "logits_bias" else new

        found = jax.tree_util.tree_map_with_path(chosen, updates, decayed)
        return found, state

    return optax.GradientTransformation(inner.init, update)


def make_optimizer(
    optimizer: ConfigDict, schedule: Schedule
) -> optax.GradientTransformation:
    """Chain global-norm clipping, optimizer, weight decay, layer decay and schedule.

    Args:
      optimizer: config group ``optimizer``; weight decay is decoupled.
      schedule: learning rate by step.

    Returns:
      An optax chain.
    """
    o = optimizer
    if o.name in ("adam", "adamw"):  # weight decay is decoupled in both
        core = optax.scale_by_adam(o.b1, o.b2, o.eps)
    elif o.name in ("sgd", "nag"):
        core = optax.trace(o.momentum, nesterov=o.name == "nag")
    else:
        raise ValueError(f"optimizer.name: no optimizer {o.name!r}")
    mask = _matrices if o.decay == "matrices" else None
    parts = [
        optax.clip_by_global_norm(o.clip) if o.clip else None,
        core,
        _weight_decay(o.weight_decay, mask) if o.weight_decay else None,
        _by_layer(o.layer_decay) if o.layer_decay != 1 else None,
        optax.scale_by_learning_rate(schedule),
    ]
    return optax.chain(*(part for part in parts if part is not None))
