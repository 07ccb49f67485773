"""What the programs set before jax starts. The library never does this on import."""

import ctypes
import io
import os
import platform
import resource
import sys
from pathlib import Path

from rdrop_jax.errors import InputError

# Threads, the heap and jaxlib itself reserve more than they use.
_ADDRESS_SPACE = 1_500_000 * 1024

# glibc's mallopt: parameter, value.
_MALLOPT = (
    # First, because older versions refuse it, and the others do harm without it.
    (-3, 2**31 - 1),  # M_MMAP_THRESHOLD: big blocks from the heap
    (-8, 1),  # M_ARENA_MAX: one heap, whichever thread asks
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: which is never given back
    (-2, 64 * 2**20),  # M_TOP_PAD: and grows in big steps
)


def tune() -> None:
    """Both settings below, for a program that is about to import jax."""
    tune_allocator()
    use_compilation_cache()


def tune_allocator() -> bool:
    """Keeps big blocks of memory between steps, on Linux with glibc.

    XLA's CPU backend asks for its scratch anew on each call; by default glibc maps it
    from the kernel and gives it back, and touching fresh pages costs more than many an
    operation on them. The price: memory once used stays with the process.

    Returns:
      Whether it was done; ``RDROP_ALLOCATOR=default`` in the environment prevents it.
    """
    if os.environ.get("RDROP_ALLOCATOR") == "default":
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Stops at the first that is refused.
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOPT)


def check_streams() -> None:
    """Check that standard output is open, before a file takes its number.

    The null device replaces closed standard input and standard error. Standard output
    escapes characters that it cannot hold, as standard error does.

    Raises:
      InputError: standard output is closed.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for number in closed:
        null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        os.set_inheritable(null, True)
        if number == 2:
            sys.stderr = open(null, "w", closefd=False)  # noqa: SIM115
    if 1 in closed:
        raise InputError(
            "standard output: expected it open, found it closed. Redirect it to a file "
            "or to /dev/null"
        )
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def drop_output() -> None:
    """Send the rest of standard output nowhere, so that exiting does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def check_address_space() -> None:
    """Check the limit of ``ulimit -v``, below which jax hangs without a message.

    Raises:
      InputError: the limit is too low for any program.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ADDRESS_SPACE:
        raise InputError(
            f"ulimit -v: expected at least {_ADDRESS_SPACE // 1024} KiB of address "
            f"space, found {limit // 1024} KiB. Raise it by `ulimit -v unlimited`, and "
            "limit resident memory (a cgroup, a container) instead"
        )


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing.

    Sets jax's own variables where the user has not: ``JAX_COMPILATION_CACHE_DIR``
    chooses the folder, ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off. A folder
    per host, because homes are shared between machines and machine code is not.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not os.path.isabs(home):  # nobody's home: no cache
            return
        folder = Path(home, "rdrop_jax", platform.node() or "host")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
