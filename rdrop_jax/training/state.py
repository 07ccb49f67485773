"""Optimizer, train step and train state of a run, from its config."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.core.train_state import TrainState, init_state
from rdrop_jax.core.train_step import Step, make_train_step
from rdrop_jax.training.checkpoint import Checkpoints, Progress
from rdrop_jax.training.mesh import gathered, state_shardings
from rdrop_jax.training.optim import make_alpha, make_optimizer, make_schedule
from rdrop_jax.training.task import Task


def make_tx(config: ConfigDict) -> optax.GradientTransformation:
    """Build the optimizer of a resolved config."""
    schedule = make_schedule(config.optimizer, config.total_steps)
    return make_optimizer(config.optimizer, schedule)


def root_key(seed: int) -> jax.Array:
    """Return a key of all 64 bits of a seed; `jax.random.key` may drop the upper 32."""
    high, low = divmod(seed % 2**64, 2**32)
    key = jax.random.key(low)
    return jax.random.fold_in(key, high) if high else key


def make_state(
    task: Task, tx: optax.GradientTransformation, config: ConfigDict
) -> TrainState:
    """Initialize a state; ``config.seed`` seeds parameters and the dropout root key."""
    params_key, dropout_key = jax.random.split(root_key(config.seed))
    params = task.init(params_key)
    return init_state(params, tx, dropout_key, ema=config.optimizer.ema > 0)


def abstract_state(
    task: Task, tx: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> TrainState:
    """Return shapes and shardings of the state without computing it."""
    return _placed(jax.eval_shape(lambda: make_state(task, tx, config)), task, mesh)


def abstract_params(task: Task, mesh: Mesh) -> Params:
    """Return shapes and shardings of the parameters without computing them."""
    return _placed(jax.eval_shape(task.init, jax.random.key(0)), task, mesh)


def _placed(shapes: Any, task: Task, mesh: Mesh) -> Any:
    shardings = state_shardings(mesh, shapes, task.step.partition_rules)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh | None = None,
) -> Step:
    """Build the train step of a resolved config, not yet jitted.

    Args:
      task: task to train.
      tx: optimizer.
      config: resolved config.
      mesh: mesh over which batch and parameters are sharded; None on one device.

    Returns:
      The train step.
    """
    r = config.rdrop
    gather = None
    if mesh is not None and mesh.shape["fsdp"] > 1:
        placed = jax.tree.map(lambda x: x.sharding, abstract_params(task, mesh))
        gather = functools.partial(gathered, placed)
    loss, options = task.loss, task.step
    if mesh is not None and mesh.size > 1 and options.sharded_loss is not None:
        loss = options.sharded_loss(mesh)
    return make_train_step(
        options.forwards or task.forward,
        tx,
        loss,
        # The loss rejects alpha > 0 for one pass, which has no consistency term.
        alpha=0.0 if r.num_passes == 1 else make_alpha(r.alpha, r.alpha_warmup),
        num_passes=r.num_passes,
        every=r.every,
        objective_scale=r.objective_scale,
        accum_steps=config.accum_steps,
        ema=config.optimizer.ema,
        how=r.how,
        out_axes=options.out_axes,
        gather=gather,
        views=options.views,
    )


def eval_params(state: TrainState) -> Params:
    """Return the parameters to score: the moving average if the state has one."""
    return state.params if state.ema_params is None else state.ema_params


def initial_state(
    task: Task,
    tx: optax.GradientTransformation,
    config: ConfigDict,
    abstract: TrainState,
    checkpoints: Checkpoints,
    initialize: Callable[[Params], Params] | None,
) -> tuple[TrainState, Progress]:
    """Return the initial or resumed state, created with its shardings.

    The first available of: (1) the newest valid checkpoint of the workdir, (2) random
    parameters transformed by ``initialize``, (3) random parameters.
    """
    step = checkpoints.latest()
    if step is not None:
        return checkpoints.restore(step, abstract)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    state = jax.jit(lambda: make_state(task, tx, config), out_shardings=shardings)()
    if initialize is None:
        return state, Progress()
    params = jax.device_put(initialize(state.params), shardings.params)
    ema = None if state.ema_params is None else jax.tree.map(jnp.copy, params)
    return replace(state, params=params, ema_params=ema), Progress()
