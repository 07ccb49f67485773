"""Training state, which shares no buffers with the arrays it is created from."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from rdrop_jax.core.losses import at_least_float32
from rdrop_jax.core.passes import Key, Params, check_key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """State carried from one training step to the next.

    Attributes:
      step: int32 scalar, number of completed steps; determines dropout keys and alpha.
      params: model parameters.
      opt_state: optimizer state.
      key: constant root PRNG key; step t draws from ``fold_in(key, t)``.
      first_bad_step: int32 scalar, first step whose loss, gradient or update was not
        finite; -1 if all were.
      ema_params: exponential moving average of params in at least float32, or None.
    """

    step: Any  # no shape types here: pytrees are rebuilt with leaves of any kind
    params: Params
    opt_state: Any
    key: Key
    first_bad_step: Any
    ema_params: Params | None = None


def init_state(
    params: Params, tx: optax.GradientTransformation, key: Key, *, ema: bool = False
) -> TrainState:
    """Create the training state at step 0.

    Args:
      params: initial parameters.
      tx: optimizer.
      key: root PRNG key of the dropout masks.
      ema: whether to keep an exponential moving average of the parameters.

    Returns:
      The state; its average starts at ``params``. It shares no buffers with ``params``
      and ``key``, so they remain usable after a step with ``donate_argnums=0``.

    Raises:
      ValueError: a leaf of ``params`` is not differentiable, for instance in an Equinox
        module that was not partitioned; or ``key`` is no PRNG key.

    Example:
      >>> import optax
      >>> params = {"w": jnp.ones((4, 3))}
      >>> state = init_state(params, optax.adam(1e-3), jax.random.key(0))
      >>> int(state.step)
      0
    """
    check_params(params)
    check_key(key)
    opt_state = tx.init(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=_copied(params),
        # Some optimizer states contain the parameter arrays themselves.
        opt_state=_copied(opt_state),
        key=_copied(key),
        first_bad_step=jnp.full((), -1, jnp.int32),
        # Copied: two leaves that share a buffer cannot both be donated.
        ema_params=jax.tree.map(_wide_copy, params) if ema else None,
    )


def _copied(tree: Any) -> Any:
    """Copy all arrays of a tree to new buffers."""

    def copied(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jnp.copy(x)
        words = jnp.copy(jax.random.key_data(x))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))

    return jax.tree.map(copied, tree)


def check_params(params: Params) -> None:
    """Check that all parameters are differentiable.

    Raises:
      ValueError: a leaf is not a floating-point or complex array or number.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        number = isinstance(leaf, (float, complex))
        if number or jnp.issubdtype(getattr(leaf, "dtype", object), jnp.inexact):
            continue
        raise ValueError(
            "params must be a pytree of floating-point arrays: found "
            f"{getattr(leaf, 'dtype', type(leaf).__name__)} at "
            f"params{jax.tree_util.keystr(path)}. Split an Equinox module by params, "
            "static = eqx.partition(model, eqx.is_inexact_array), and start forward "
            "with model = eqx.combine(params, static)"
        )


def _wide_copy(x: Array) -> Array:
    """Copy to at least float32: in half precision, EMA updates would round to 0."""
    return at_least_float32(jnp.copy(x))
