"""Turns Flax modules into ``forward(params, batch, key | None) -> outputs``."""

from collections.abc import Callable, Mapping
from typing import Any

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
    rng: str = "dropout",
) -> Forward:
    """Forward function of a Linen module, or of anything with its ``apply``.

    Args:
      module: has ``apply({"params": params}, *args, rngs=..., **kwargs)``.
      inputs: name of the batch entry to pass, or ``batch -> tuple of arguments``.
      train: keyword arguments that turn dropout on, like ``{"train": True}``.
      evaluate: keyword arguments that turn it off, like ``{"train": False}``.
      rng: name of the module's dropout stream.

    Returns:
      ``forward(params, batch, key)``; ``key=None`` evaluates.

    Raises:
      ValueError: when called with variable collections in place of parameters.

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
                "variables['params']. A mutable collection such as batch_stats needs a "
                "forward of your own that returns it as aux (has_aux=True)"
            )
        args = _arguments(inputs, batch)
        if key is None:
            return module.apply({"params": params}, *args, **evaluate)
        return module.apply({"params": params}, *args, rngs={rng: key}, **train)

    return forward


def nnx_forward(model: Any, inputs: Inputs) -> tuple[Forward, Params]:
    """Forward function and parameters of an NNX module.

    The module must take its randomness at call time, ``model(x, rngs=rngs)``, and pass
    it to every `nnx.Dropout`. A module that owns its stream would draw the same mask in
    both passes each time it is merged.

    Args:
      model: an `nnx.Module`.
      inputs: name of the batch entry to pass, or ``batch -> tuple of arguments``.

    Returns:
      ``(forward, params)``: forward as everywhere, params a pytree of arrays.

    Raises:
      ValueError: the module holds batch statistics, which passes would have to share.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> forward, params = nnx_forward(nnx.Dropout(0.5), "x")
      >>> forward(params, {"x": jnp.ones(2)}, None).tolist()
      [1.0, 1.0]
    """
    from flax import nnx  # here alone, so that the method never needs flax

    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    flat = nnx.to_flat_state(rest)
    stateful = [
        "/".join(map(str, path))
        for path, leaf in zip(flat.paths, flat.leaves, strict=True)
        if isinstance(leaf, nnx.BatchStat)
    ]
    if stateful:
        raise ValueError(
            f"the module keeps batch statistics, {stateful}: two passes would each "
            "update them; freeze them or write a forward that returns them as aux"
        )

    def forward(params: Params, batch: Batch, key: Key | None) -> Any:
        module = nnx.merge(graph, params, rest)
        args = _arguments(inputs, batch)
        if key is None:
            module.eval()
            return module(*args)
        module.train()
        return module(*args, rngs=nnx.Rngs(dropout=key))

    return forward, nnx.to_pure_dict(params)
