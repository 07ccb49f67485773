"""Free memory of this process, checked before large allocations. Needs no jax."""

import resource
from pathlib import Path

from rdrop_jax.errors import InputError

_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free() -> int | None:
    """Return the number of bytes that this process may still allocate.

    The minimum of the machine's available memory, the limits of control groups and the
    limit on the address space (``ulimit -v``).

    Returns:
      The number of bytes; None if unknown.
    """
    found = [_available(), _address_space()]
    for limit, usage in _CGROUPS:
        most, used = (_number(Path("/sys/fs/cgroup", name)) for name in (limit, usage))
        if most is not None and used is not None:
            found.append(max(most - used, 0))
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
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


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
