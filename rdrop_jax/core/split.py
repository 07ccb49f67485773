"""Which axes of a mesh the rows of a loss are split over."""

from typing import NamedTuple

from jax.sharding import AxisType, Mesh

ROWS, TENSOR = ("data", "fsdp"), "tensor"


class Split(NamedTuple):
    """Rows over the axes ``rows`` of ``mesh``; ``tensor`` where a vocabulary may be.

    Attributes:
      mesh: the devices.
      rows: those of `ROWS` that the mesh has.
      tensor: `TENSOR` where the mesh has it with more than one device, else None.
    """

    mesh: Mesh
    rows: tuple[str, ...]
    tensor: str | None


def split_over(mesh: Mesh | None, rows: int) -> Split | None:
    """Checks a mesh, and that it divides ``rows``; None where one device does all.

    Raises:
      ValueError: an axis of another name or type, rows that do not divide.
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
    return Split(mesh, axes, tensor)
