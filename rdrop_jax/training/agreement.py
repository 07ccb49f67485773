"""Checks that all processes of a run have the same config, data and workdir.

Imports jax inside functions only.
"""

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import explained, sync
from rdrop_jax.training.distributed import from_process_0

_ABSENT = object()
_SEEN_WITHIN = 10.0  # seconds for a network file system to show a new file


def check_equal(name: str, content: Mapping[str, Any]) -> None:
    """Check that all processes have the same values, before a joint computation.

    Args:
      name: name of the compared object, for the message.
      content: names to values; other types than JSON's are compared as text.

    Raises:
      InputError: values differ. Raised on every process; lists the first fields.
    """
    if found := _differences(content):
        lines = [f"{field}: {text}" for field, text in found[:20]]
        raise InputError(
            f"{name}: expected the same on all processes, found differences. Start "
            "every process with the same command, data and package:\n  "
            + "\n  ".join(lines)
        )


def check_same_commits(names: Mapping[str, str]) -> None:
    """Check that all processes have the same commits of the Hub.

    Args:
      names: config field to ``hf:ORG/NAME@COMMIT``.

    Raises:
      InputError: commits differ. Raised on every process.
    """
    for field, text in _differences(names)[:1]:
        raise InputError(
            f"{field}: expected the same commit on all processes, got {text}. Start "
            "every process with one of these names"
        )


def _differences(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return fields that differ between processes, with the values of two."""
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    if jax.process_count() == 1:
        return []
    text = json.dumps(content, sort_keys=True, default=str).encode()
    digest = np.frombuffer(hashlib.sha256(text).digest(), np.uint8)
    digests = process_allgather(digest)
    if (digests == digests[0]).all():
        return []
    # Send the full text only if the checksums differ.
    length = int(process_allgather(np.int32(len(text))).max())
    padded = np.frombuffer(text.ljust(length), np.uint8)
    first, *others = (json.loads(bytes(row)) for row in process_allgather(padded))
    return [
        (
            field,
            f"process 0 {first.get(field, '(absent)')!r:.160}, process {number} "
            f"{other.get(field, '(absent)')!r:.160}",
        )
        for number, other in enumerate(others, 1)
        for field in sorted(first.keys() | other.keys())
        if first.get(field, _ABSENT) != other.get(field, _ABSENT)
    ]


def check_visible(folder: Path, names: Sequence[str], remedy: str) -> None:
    """Check that all processes see files that process 0 sees.

    A network file system may show new files late, so that each process retries for
    some seconds.

    Args:
      folder: folder that contains the files.
      names: file paths relative to ``folder``.
      remedy: end of the message.

    Raises:
      InputError: a process does not see a file. Raised on every process.
    """
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    if jax.process_count() == 1:
        return
    end = time.monotonic() + _SEEN_WITHIN
    missing = [name for name in names if not (folder / name).exists()]
    while missing and time.monotonic() < end:
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            os.listdir(folder)  # makes a network file system refresh its cache
        missing = [name for name in missing if not (folder / name).exists()]
    counts = process_allgather(np.int32(len(missing)))
    blind = [str(number) for number, count in enumerate(counts) if count]
    if blind:
        raise InputError(
            f"--workdir: expected {folder} on a file system that all "
            f"{jax.process_count()} processes share, found process "
            f"{', '.join(blind)} without a file that process 0 wrote. {remedy}"
        )


def check_shared(workdir: Path) -> None:
    """Check before the first step that all processes have one workdir.

    Process 0 writes a file with a random name, and all processes must see it.

    Raises:
      InputError: a process has a different workdir. Raised on every process.
    """
    import jax

    if jax.process_count() == 1:
        return
    token = from_process_0(lambda: _write_token(workdir))
    path = workdir / f".shared-{token}"
    try:
        check_visible(
            workdir, [path.name], "Mount the same folder on every host, and start again"
        )
    finally:
        if jax.process_index() == 0:
            path.unlink(missing_ok=True)


def _write_token(workdir: Path) -> int:
    token = secrets.randbits(30)
    with explained(workdir):
        (workdir / f".shared-{token}").touch()
        sync(workdir)
    return token
