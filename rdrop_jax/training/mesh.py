"""Device mesh and shardings of batches and parameters."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rdrop_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
# Sharding smaller arrays is not worth a gather on every use.
_FSDP_MIN_SIZE = 2**16
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Return a mesh with the axes data, fsdp and tensor.

    Args:
      data: size of the axis that shards only the batch; -1 for all remaining devices.
      fsdp: size of the axis that shards batch and parameters.
      tensor: size of the axis that shards matrices.
      devices: devices of the mesh; default: all devices of all processes.

    Returns:
      The mesh, with axis types Auto: the compiler chooses intermediate shardings.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    sizes = [data, fsdp, tensor]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1 or count % fixed or (-1 not in sizes and fixed != count):
        raise InputError(
            f"mesh: expected axes that multiply to {count} devices, one of them at "
            f"most -1, found {dict(zip(AXES, sizes, strict=True))}"
        )
    sizes = [count // fixed if size == -1 else size for size in sizes]
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return a sharding of rows over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return a sharding that keeps every array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh) -> int:
    """Return the number of parts that the rows of a batch are split into."""
    return int(mesh.shape["data"] * mesh.shape["fsdp"])


def shard_batch(mesh: Mesh, batch: Any, *, full: bool = False) -> Any:
    """Shard the rows of a host batch over the data and fsdp axes.

    Args:
      mesh: device mesh.
      batch: pytree of numpy arrays with this process's rows; scalars are replicated.
      full: True if every process passes the full batch, as in evaluation.

    Returns:
      The global batch.

    Raises:
      InputError: the rows do not divide evenly over the devices or the processes.
    """
    sharding = batch_sharding(mesh)
    shards = row_shards(mesh)

    def place(x: np.ndarray | np.generic) -> jax.Array:
        if np.ndim(x) == 0:
            return jax.device_put(x, replicated(mesh))
        x = np.asarray(x)
        rows = len(x) if full else len(x) * jax.process_count()
        if rows % shards:
            raise InputError(
                "batch_size, eval.batch_size, or data.rows_multiple of batches by "
                f"tokens: expected a multiple of the {shards} devices that rows are "
                f"split over, found {rows}"
            )
        shape = (rows, *x.shape[1:])
        local = _local_rows(sharding, shape)
        if not full and local != len(x):
            raise InputError(
                "mesh: expected every process to have a separate part of a batch, "
                f"{len(x)} rows, found {local}; data x fsdp must be a multiple of the "
                f"{jax.process_count()} processes, found {shards}"
            )
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(place, batch)


def _local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> int:
    """Return the number of rows on the devices of this process."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    parts = {index[0].indices(shape[0]) for index in indices if index is not None}
    return sum(stop - start for start, stop, _ in parts)


def state_shardings(mesh: Mesh, abstract: Any, rules: Rules = ()) -> Any:
    """Return a sharding for every leaf of a state.

    The first rule that matches the end of a leaf's path shards the leaf over the tensor
    axis. Then fsdp shards the largest free dimension that it divides, if the array has
    at least ``2**16`` elements. All other dimensions are replicated.

    Args:
      mesh: device mesh.
      abstract: pytree of shapes, as `jax.eval_shape` returns it.
      rules: pairs of a regular expression for a path's end and a partition spec.

    Returns:
      The same tree of `NamedSharding`.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((s for rule, s in rules if re.search(f"({rule})$", name)), ())
        axes = [*spec, *[None] * (len(leaf.shape) - len(spec))][: len(leaf.shape)]
        axes = [
            a if a and leaf.shape[i] % mesh.shape[a] == 0 else None
            for i, a in enumerate(axes)
        ]
        if math.prod(leaf.shape) >= _FSDP_MIN_SIZE and mesh.shape["fsdp"] > 1:
            by_size = sorted(range(len(axes)), key=lambda i: -leaf.shape[i])
            free = (
                i
                for i in by_size
                if axes[i] is None and leaf.shape[i] % mesh.shape["fsdp"] == 0
            )
            largest = next(free, None)
            if largest is not None:
                axes[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(place, abstract)


def gathered(shardings: Any, params: Any) -> Any:
    """Gather parameters over the fsdp axis for their use in a computation.

    Without this constraint, the compiler may shard activations like parameters and then
    moves rows between devices in every layer.

    Args:
      shardings: shardings of the parameters.
      params: pytree of arrays.

    Returns:
      The parameters, sharded over the tensor axis only.
    """

    def unsharded(sharding: NamedSharding) -> NamedSharding:
        axes = (None if axis == "fsdp" else axis for axis in sharding.spec)
        return NamedSharding(sharding.mesh, PartitionSpec(*axes))

    return jax.lax.with_sharding_constraint(params, jax.tree.map(unsharded, shardings))
