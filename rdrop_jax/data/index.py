"""index.json of a prepared dataset, and whether the files that it names are there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.runtime.disk import read_json

FORMAT = 1


def read(
    folder: Path, sizes: Callable[[dict[str, Any]], Mapping[str, int]]
) -> dict[str, Any]:
    """The index of a prepared dataset.

    Args:
      folder: of the dataset.
      sizes: index to the bytes of each file that has to be there; looks up all fields
        that the index must have.

    Returns:
      The index.

    Raises:
      InputError: there is none, one that is damaged or of another format, or a file is
        not there.
    """
    path = folder / "index.json"
    index = read_json(path)
    if index.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT}, found another; prepare it again"
        )
    try:
        files = sizes(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: found a damaged index: {error!r}; prepare it again"
        ) from error
    for name, expected in files.items():
        size = size_of(folder / name)
        if size != expected:
            raise InputError(
                f"{folder / name}: expected {expected} bytes, as {path.name} says, "
                f"found {'no such file' if size is None else size}; prepare it again"
            )
    return index


def size_of(path: Path) -> int | None:
    """Return the bytes of a file; None if it is absent or its name is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None
