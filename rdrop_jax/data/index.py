"""Reading index.json of stored data, and checking the files that it names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json

FORMAT = 1


def read(
    folder: Path,
    sizes: Callable[[dict[str, Any]], Mapping[str, int]],
    remedy: str = "Prepare the dataset again.",
) -> dict[str, Any]:
    """Read the index of a folder.

    Args:
      folder: folder of the dataset.
      sizes: function from the index to the bytes of each required file. It must look up
        all required fields of the index.
      remedy: end of the error messages.

    Returns:
      The index.

    Raises:
      InputError: the index is missing, corrupt or of an unsupported format, or a file
        is missing.
    """
    path = folder / "index.json"
    index = read_json(path)
    if index.get("format") != FORMAT:
        raise InputError(
            f"{path}: expected format {FORMAT}, found {index.get('format')!r}. {remedy}"
        )
    try:
        files = sizes(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: corrupt index: {error!r}. {remedy}") from error
    for name, expected in files.items():
        size = size_of(folder / name)
        if size != expected:
            raise InputError(
                f"{folder / name}: expected {expected} bytes (from {path.name}), found "
                f"{'no such file' if size is None else size}. {remedy}"
            )
    return index


def read_texts(folder: Path) -> dict[str, Any]:
    """Read the index of a folder with text files, as `read` does.

    The index contains the sizes of all ``files``, or of a .jsonl file for each of the
    ``splits``.
    """

    def sizes(index: dict[str, Any]) -> dict[str, int]:
        if "files" in index:
            return {name: file["bytes"] for name, file in index["files"].items()}
        return {f"{s}.jsonl": file["bytes"] for s, file in index["splits"].items()}

    return read(folder, sizes)


def size_of(path: Path) -> int | None:
    """Return the bytes of a file; None if it is missing or its name is invalid."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None
