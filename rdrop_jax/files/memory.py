"""Free memory of this process, checked before large allocations. Needs no jax."""

import resource
from pathlib import Path

from rdrop_jax.errors import InputError

# Limit, usage, and statistics with the name of the pages of files that are not in use.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)
_ROOT = Path("/sys/fs/cgroup")


def free() -> int | None:
    """Return the number of bytes that this process may still allocate.

    The minimum of the machine's available memory, the limits of control groups and the
    limit on the address space (``ulimit -v``).

    Returns:
      The number of bytes; None if unknown.
    """
    found = [_available(), _address_space()]
    for limit, usage, statistics, name in _CGROUPS:
        most, used = (_number(_ROOT / file) for file in (limit, usage))
        if most is not None and used is not None:
            # The usage contains pages of files, which the kernel frees on demand.
            cached = _field(_ROOT / statistics, f"{name} ") or 0
            found.append(max(most - used + cached, 0))
    known = [size for size in found if size is not None]
    return min(known) if known else None


def check_fits(needed: int, what: str) -> None:
    """Refuse an allocation that cannot succeed.

    Args:
      needed: number of bytes.
      what: field and file, for the message.

    Raises:
      InputError: fewer bytes are free.
    """
    there = free()
    if there is not None and needed > there:
        raise InputError(
            f"{what}: expected at most {there / 2**20:.0f} MiB, which are free, got "
            f"{needed / 2**20:.0f} MiB. Free memory, raise its limit, or use a smaller "
            "file."
        )


def _available() -> int | None:
    kilobytes = _field(Path("/proc/meminfo"), "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _field(path: Path, start: str) -> int | None:
    """Return the number in the line of a file that begins with ``start``, or None."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = (line.removeprefix(start) for line in lines if line.startswith(start))
    return next((int(text.split()[0]) for text in found), None)


def _address_space() -> int | None:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return most
    return max(most - pages * resource.getpagesize(), 0)


def _number(path: Path) -> int | None:
    """Read a number from a file; None if the file is absent or sets no limit."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
