"""Text files in downloaded tar archives and folders, read without unpacking to disk.

A file is found by the end of its path, inside any given archive or folder.
"""

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import IO

from rdrop_jax.errors import InputError
from rdrop_jax.files import lines

_SEGMENT = re.compile(r"<seg[^>]*>\s*(.*?)\s*</seg>", re.IGNORECASE)


class Downloads:
    """Reader of text files in archives and folders.

    Args:
      paths: .tar, .tgz or .tar.gz files, folders, or text files.

    Raises:
      InputError: a path is missing or not an archive.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._found: dict[str, tuple[Path, str]] = {}
        for path in paths:
            if not path.exists():
                raise InputError(f"--from: expected {path}, found no such file")
            for file in _below(path):
                if re.search(r"\.(tar|tgz|tar\.gz)$", file.name):
                    self._found |= {name: (file, name) for name in _names(file)}
                else:
                    self._found[str(file)] = (file, "")

    def find(self, ending: str) -> list[str]:
        """Return the sorted names whose end matches a regular expression."""
        return sorted(n for n in self._found if re.search(f"(^|/){ending}$", n))

    def one(self, ending: str, origin: str) -> str:
        """Return the first name that matches.

        Raises:
          InputError: no match; the message names the publisher.
        """
        found = self.find(ending)
        if not found:
            raise InputError(
                f"--from: expected a file {ending.replace(chr(92), '')} in the "
                f"archives and folders given, found none; it is part of {origin}"
            )
        return found[0]

    def lines(self, name: str) -> Iterator[str]:
        """Read the lines of a text file.

        Raises:
          InputError: a line that is not UTF-8, or a corrupt file.
        """
        path, member = self._found[name]
        if not member:
            yield from lines.read(path)
            return
        with tarfile.open(path, "r:*") as archive:
            file: IO[bytes] | None = archive.extractfile(member)
            try:
                yield from lines.decoded(file or io.BytesIO(), name)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"--from: {path}: {name}: damaged: {error}") from error

    def segments(self, name: str) -> Iterator[str]:
        """Read the ``<seg>`` elements of an .xml evaluation file."""
        text = "\n".join(self.lines(name))
        for segment in re.findall(_SEGMENT, text):
            yield unescape(segment)


def _below(path: Path) -> list[Path]:
    return (
        sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    )


def _names(path: Path) -> list[str]:
    try:
        with tarfile.open(path, "r:*") as archive:
            return [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"--from: {path}: a damaged archive: {error}") from error
