"""What the programs set before jax starts. The library never does this on import."""

import ctypes
import os
import platform
from pathlib import Path

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
