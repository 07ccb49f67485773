"""Untrusted archives: verified before they are read, never unpacked to disk."""

import hashlib
import logging
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError

_logger = logging.getLogger(__name__)
_CHUNK = 2**22
_LOG_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Source:
    """A source file of a dataset.

    Attributes:
      file: published file name.
      url: download address.
      md5: published MD5 checksum.
    """

    file: str
    url: str
    md5: str


def locate(sources: tuple[Source, ...], files: list[Path]) -> dict[str, Path]:
    """Find every source among files and folders.

    Returns:
      Paths by source file name.

    Raises:
      InputError: a source is missing; the message names its URL.
    """
    found = {}
    for source in sources:
        tried = [f / source.file if f.is_dir() else f for f in files]
        there = [f for f in tried if f.name == source.file and f.is_file()]
        if not there:
            places = ", ".join(map(str, files))
            raise InputError(
                f"--from: expected {source.file}, found none in {places}; it is at "
                f"{source.url}"
            )
        found[source.file] = there[0]
    return found


def verify(
    sources: tuple[Source, ...], paths: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """Compute the checksums of sources and compare them with the published ones.

    Raises:
      InputError: a file differs from the published one.
    """
    return {s.file: _verified(s, paths[s.file]) for s in sources}


def _verified(source: Source, path: Path) -> dict[str, Any]:
    sums = {name: hashlib.new(name) for name in ("md5", "sha256")}
    size, done, logged = path.stat().st_size, 0, time.monotonic()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for value in sums.values():
                value.update(chunk)
            done += len(chunk)
            if time.monotonic() - logged > _LOG_EVERY:
                logged = time.monotonic()
                share, total = f"{done / size:.0%}", f"{size / 2**30:.1f} GiB"
                _logger.info("checking %s: %s of %s", path.name, share, total)
    digests = {name: value.hexdigest() for name, value in sums.items()}
    if digests["md5"] != source.md5:
        raise InputError(
            f"--from: {path}: expected md5 {source.md5}, found {digests['md5']}; "
            f"it is damaged or another file; get it again from {source.url}"
        )
    return {"bytes": size} | digests


def open_tar(path: Path, file: Any = None) -> tarfile.TarFile:
    """Open a tar archive for random access; ``file`` is a nested archive.

    Raises:
      InputError: not a tar archive.
    """
    try:
        return tarfile.open(None if file else path, "r:*", fileobj=file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{path}: expected a tar archive, found none: {error}"
        ) from error


def members(archive: tarfile.TarFile, origin: str) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive; nothing is written to disk.

    Raises:
      InputError: a corrupt archive, a path outside it, or a link or device.
    """
    try:
        while (member := archive.next()) is not None:
            vars(archive)["members"] = []  # a full list may exhaust memory
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                raise InputError(
                    f"{origin}: expected names below the archive, found {member.name!r}"
                )
            if member.isfile():
                yield member
            elif not member.isdir():
                raise InputError(
                    f"{origin}: expected files and folders, found a link or device "
                    f"{member.name!r}"
                )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{origin}: a damaged archive: {error}") from error


def read(
    archive: tarfile.TarFile, member: tarfile.TarInfo, origin: str, limit: int
) -> bytes:
    """Read the bytes of a member of at most ``limit`` bytes.

    Raises:
      InputError: too large, or truncated.
    """
    if member.size > limit:
        raise InputError(
            f"{origin}: {member.name}: expected at most {limit} bytes, found "
            f"{member.size}"
        )
    try:
        file = archive.extractfile(member)
        content = b"" if file is None else file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{origin}: {member.name}: damaged: {error}") from error
    if len(content) != member.size:
        raise InputError(
            f"{origin}: {member.name}: expected {member.size} bytes, found "
            f"{len(content)}"
        )
    return content


def lines(content: bytes, origin: str) -> list[str]:
    """Return the entries of a text file, separated by white space.

    Raises:
      InputError: not UTF-8.
    """
    try:
        return content.decode().split()
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: expected text, found {error}") from error
