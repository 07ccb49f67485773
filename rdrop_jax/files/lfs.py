"""Pointers that git-lfs leaves instead of large files. Needs no jax."""

from pathlib import Path

from rdrop_jax.errors import InputError

_FIRST = b"version https://git-lfs.github.com/spec/"


def is_pointer(path: Path) -> bool:
    """Return True for a git-lfs pointer; False for other or unreadable files."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(_FIRST)) == _FIRST
    except OSError:
        return False


def check_not_pointer(path: Path, field: str = "") -> None:
    """Refuse a git-lfs pointer.

    Args:
      path: path of a file, which is read only if it is a regular file.
      field: config field, for the message.

    Raises:
      InputError: the file is a pointer; gives the command that fetches the file.
    """
    if is_pointer(path):
        start = f"{field}: " if field else ""
        raise InputError(
            f"{start}{path}: expected the file, got a git-lfs pointer to it. Run `git "
            f"lfs pull` in {path.parent}."
        )
