"""Adapters from Flax modules to ``forward(params, batch, key | None) -> outputs``."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from rdrop_jax.core.passes import Batch, Forward, Key, Params

Inputs = str | Callable[[Batch], tuple[Any, ...]]


def _arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    return (batch[inputs],) if isinstance(inputs, str) else inputs(batch)


def linen_forward(
    module: Any,
    inputs: Inputs,
    *,
    train: Mapping[str, Any],
    evaluate: Mapping[str, Any],
    rng: str | Sequence[str] = "dropout",
) -> Forward:
    """Make the forward function of a Linen module, or of an object with its ``apply``.

    Args:
      module: object with ``apply({"params": params}, *args, rngs=..., **kwargs)``.
      inputs: name of the batch entry to pass, or ``batch -> tuple of arguments``.
      train: keyword arguments that turn dropout on, like ``{"train": True}``.
      evaluate: keyword arguments that turn dropout off, like ``{"train": False}``.
      rng: name of the module's dropout stream, or names of all its random streams.

    Returns:
      ``forward(params, batch, key)``; ``key=None`` evaluates.

    Raises:
      ValueError: (from forward) params are variable collections, not parameters.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> module = nn.Dropout(0.5)
      >>> forward = linen_forward(
      ...     module, "x",
      ...     train={"deterministic": False}, evaluate={"deterministic": True})
      >>> forward({}, {"x": jnp.ones(2)}, None).tolist()
      [1.0, 1.0]
    """

    def forward(params: Params, batch: Batch, key: Key | None) -> Any:
        if isinstance(params, Mapping) and "params" in params:
            raise ValueError(
                f"params holds whole variable collections, {sorted(params)}: give "
                "variables['params']. A collection that passes change, such as "
                "batch_stats, needs your own forward that returns it as aux, "
                "forward_passes(..., has_aux=True), and your own train step"
            )
        args = _arguments(inputs, batch)
        if key is None:
            return module.apply({"params": params}, *args, **evaluate)
        if isinstance(rng, str):
            rngs = {rng: key}
        else:
            rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(rng)}
        return module.apply({"params": params}, *args, rngs=rngs, **train)

    return forward


def nnx_forward(model: Any, inputs: Inputs) -> tuple[Forward, Params]:
    """Return the forward function and parameters of an NNX module.

    Each pass has its own key. Random streams stored in the module, as created by
    ``nnx.Dropout(0.1, rngs=rngs)``, are seeded from it. A module whose call takes
    ``rngs`` receives it as the stream "dropout". Write trained parameters back with
    ``nnx.update(model, state.params)``.

    Args:
      model: an `nnx.Module`.
      inputs: name of the batch entry to pass, or ``batch -> tuple of arguments``.

    Returns:
      The function ``forward(params, batch, key)``, and params, a pytree of arrays.

    Raises:
      ValueError: the module has batch statistics, which passes would have to share.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> forward, params = nnx_forward(nnx.Dropout(0.5), "x")
      >>> forward(params, {"x": jnp.ones(2)}, None).tolist()
      [1.0, 1.0]
    """
    from flax import nnx  # imported here so that the R-Drop core does not need flax

    graph, *states = nnx.split(model, nnx.Param, nnx.RngKey, ...)
    flat = nnx.to_flat_state(states[2])
    stateful = [
        "/".join(map(str, path))
        for path, leaf in zip(flat.paths, flat.leaves, strict=True)
        if isinstance(leaf, nnx.BatchStat)
    ]
    if stateful:
        raise ValueError(
            f"the module keeps batch statistics, {stateful}: two passes would each "
            "update them. Freeze them, or write a forward that returns them as aux and "
            "your own train step"
        )
    # From plain arrays, every merge creates new variables that a pass may change.
    initial, streams, rest = (nnx.to_pure_dict(state) for state in states)
    takes = inspect.signature(type(model).__call__).parameters
    passed_on = any(p.kind == p.VAR_KEYWORD for p in takes.values())
    takes_rngs = "rngs" in takes or (passed_on and not streams)

    def forward(params: Params, batch: Batch, key: Key | None) -> Any:
        args = _arguments(inputs, batch)
        if key is None:
            module = nnx.merge(graph, params, streams, rest)
            module.eval()
            return module(*args)
        module = nnx.merge(graph, params, _seeded(streams, key), rest)
        module.train()
        return (
            module(*args, rngs=nnx.Rngs(dropout=key)) if takes_rngs else module(*args)
        )

    return forward, initial


def _seeded(streams: Any, key: Key) -> Any:
    """Derive the keys of all streams from ``key`` and the index of each leaf."""
    leaves, tree = jax.tree.flatten(streams)
    keys = [
        jax.random.split(jax.random.fold_in(key, i), x.shape)
        if x.ndim
        else jax.random.fold_in(key, i)
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, keys)
