"""Mesh axes that the rows and the vocabulary of a loss are sharded over."""

from typing import NamedTuple

from jax.sharding import AxisType, Mesh

ROWS, TENSOR = ("data", "fsdp"), "tensor"


class MeshSplit(NamedTuple):
    """Mesh axes of the rows, and of the vocabulary if it is sharded.

    Attributes:
      mesh: device mesh.
      rows: names in `ROWS` that are axes of the mesh.
      tensor: `TENSOR` if the mesh has this axis with more than one device, else None.
    """

    mesh: Mesh
    rows: tuple[str, ...]
    tensor: str | None


def split_over(mesh: Mesh | None, rows: int) -> MeshSplit | None:
    """Check a mesh and that it divides ``rows``; return None for a single device.

    Raises:
      ValueError: unknown axis name, axis type other than Auto, or indivisible rows.
    """
    if mesh is None or mesh.size == 1:
        return None
    if not set(mesh.axis_names) <= {*ROWS, TENSOR}:
        raise ValueError(
            f"mesh must have axes of {(*ROWS, TENSOR)}: found {mesh.axis_names}"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            "mesh must have axes of type Auto, jax.make_mesh(shape, names, "
            f"axis_types=(AxisType.Auto,) * n): found {mesh.axis_types}"
        )
    axes = tuple(name for name in ROWS if name in mesh.axis_names)
    parts = 1
    for name in axes:
        parts *= mesh.shape[name]
    if rows % parts:
        raise ValueError(
            f"the first axis of labels must be a multiple of {parts} devices: found "
            f"{rows}"
        )
    tensor = TENSOR if mesh.shape.get(TENSOR, 1) > 1 else None
    return MeshSplit(mesh, axes, tensor)
