"""Image files of a folder, and their suffixes. Needs no jax."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import features

# Image formats by file suffix.
_FORMAT_OF = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
}
_OPTIONAL = ("WEBP", "AVIF")  # Pillow may be built without them


def _is_built(format: str) -> bool:
    """Return True if this build of Pillow can open a format."""
    name = format.lower()
    found = name in features.modules and features.check_module(name)
    return bool(found) or format not in _OPTIONAL


# Formats that this build of Pillow can open.
FORMATS = tuple(f for f in dict.fromkeys(_FORMAT_OF.values()) if _is_built(f))
SUFFIXES = tuple(end for end, format in _FORMAT_OF.items() if format in FORMATS)


def is_image(name: str) -> bool:
    """Return True for names with an image suffix that are not hidden."""
    return name[0] != "." and name.lower().endswith(SUFFIXES)


def _is_system_file(name: str) -> bool:
    return name[0] == "." or name.lower() in ("thumbs.db", "desktop.ini")


def find(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Find image files below a folder by suffix, in any order.

    Hidden files and folders are skipped.

    Args:
      folder: folder to search; links to folders are not followed.
      left_out: counter of all skipped files and links, by suffix; updated in place.

    Raises:
      OSError: an unreadable folder.
    """
    left_out = Counter() if left_out is None else left_out
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            entries = [entry for entry in found if not _is_system_file(entry.name)]
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif kind := _not_a_file(entry):
                left_out[kind] += 1
            elif is_image(entry.name):
                yield Path(entry.path)
            else:
                left_out[Path(entry.name).suffix.lower() or "without an ending"] += 1


def _not_a_file(entry: os.DirEntry[str]) -> str:
    """Return the type of a non-file entry, else ""; calls no stat for regular files."""
    try:
        if entry.is_file():
            return ""
        if not entry.is_symlink():
            return "pipes, sockets or devices"
        return "links to folders" if entry.is_dir() else "broken links"
    except OSError:  # a link to itself, or into an unreadable folder
        return "broken links"


def left_out_line(root: Path, left_out: Counter[str]) -> str:
    """Return a note about skipped files.

    Args:
      root: folder that was searched.
      left_out: number of files by suffix or location.
    """
    counts = ", ".join(f"{n} {what}" for what, n in sorted(left_out.items()))
    return f"{root}: {left_out.total()} files are not read: {counts}"


def listed_path(root: Path, name: str) -> str:
    """Strip white space from a listed path, unless the path exists with it.

    Args:
      root: folder that the path is relative to.
      name: path as written in the list.
    """
    stripped = name.strip()
    # os.path.isfile returns False for invalid names, for which Path.is_file raises.
    return name if name != stripped and os.path.isfile(root / name) else stripped
