"""Decorator for losses of arrays on meshes with Explicit, Auto or Manual axes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

try:
    from jax.sharding import auto_axes
except ImportError:  # before jax 0.7
    from jax.experimental.shard import (  # type: ignore[import-not-found,no-redef]
        auto_axes,
    )

Function = TypeVar("Function", bound=Callable[..., Any])


def platform() -> str:
    """Return the platform that the current program is traced for.

    It is that of the devices of `jax.set_mesh`, or else of the default backend. A
    program can thus be compiled for devices that the machine does not have.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


def device_count() -> int:
    """Return the number of devices of `jax.set_mesh`, or else of all processes."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() if mesh.empty else mesh.size


def on_any_mesh(positions: int | None = None) -> Callable[[Function], Function]:
    """Make a function of arrays independent of their sharding types.

    Explicit axes become Auto within the function, so the compiler places intermediate
    arrays. Within `jax.shard_map`, all arguments are cast to vary over the same Manual
    axes, so that loops and custom gradients see one type. No data moves. Before jax
    0.7, pass ``check_vma=False`` to `jax.shard_map`.

    Args:
      positions: None if all results are scalars. Otherwise results have one entry per
        position, sharded like the first argument without its last ``positions`` axes;
        -1 keeps only the first axis.

    Returns:
      A decorator.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            try:  # The order of the parameters, also for arguments given by name.
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # its message names the function
            leaves, tree = jax.tree.flatten((bound.args, bound.kwargs))
            at = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]
            arrays = [leaves[i] for i in at]

            def call(*arrays: Any) -> Any:
                new = list(leaves)
                for i, x in zip(at, arrays, strict=True):
                    new[i] = x
                args, kwargs = jax.tree.unflatten(tree, new)
                return function(*args, **kwargs)

            found = _explicit(arrays)
            if found is None:
                return call(*_aligned(arrays))
            mesh, axes, number = found
            spec = PartitionSpec()
            if positions is not None and arrays:
                first = jax.typeof(arrays[0])
                kept = first.ndim - positions if positions >= 0 else 1
                spec = PartitionSpec(*first.sharding.spec[:kept])
            out = NamedSharding(mesh, spec)
            auto = auto_axes(
                lambda *arrays: _spread(call(*arrays), arrays[number]),
                axes=axes,
                out_sharding=out,
            )
            return auto(*_aligned(arrays))

        return run  # type: ignore[return-value]

    return decorate


def _explicit(arrays: list[jax.Array]) -> tuple[Any, tuple[str, ...], int] | None:
    """Find the first array with Explicit axes; return mesh, axis names and index."""
    for number, x in enumerate(arrays):
        mesh = getattr(jax.typeof(x).sharding, "mesh", None)
        if mesh is None:
            continue
        axes = tuple(
            name
            for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
            if kind == AxisType.Explicit
        )
        if axes:
            return mesh, axes, number
    return None


def _spread(results: Any, like: jax.Array) -> Any:
    """Place the results on all devices of ``like``.

    Outside `jax.jit`, a constant such as the number of positions is on one device, and
    `jax.sharding.auto_axes` cannot move it. Within `jax.jit` this costs nothing.
    """
    first = like[(0,) * like.ndim]
    return jax.tree.map(lambda x: jnp.where(first == first, x, x), results)


def _aligned(arrays: list[jax.Array]) -> list[jax.Array]:
    """Cast all arrays to vary over every Manual axis that any of them varies over."""
    varying = [_varying(x) for x in arrays]
    every = frozenset().union(*varying)
    return [
        _cast(x, tuple(sorted(every - own))) if every - own else x
        for x, own in zip(arrays, varying, strict=True)
    ]


def _cast(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    # Before jax 0.8.
    return jax.lax.pvary(x, axes)  # type: ignore[attr-defined]


def _varying(x: jax.Array) -> frozenset[str]:
    kind = getattr(jax.typeof(x), "manual_axis_type", jax.typeof(x))
    # Before jax 0.9 the type itself has the axes.
    found: frozenset[str] = getattr(kind, "varying", getattr(kind, "vma", frozenset()))
    return found
