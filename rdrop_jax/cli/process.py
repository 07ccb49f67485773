"""Start and end of a program, and its process settings; never applied on import."""

import contextlib
import ctypes
import io
import logging
import os
import platform
import resource
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from rdrop_jax import extras
from rdrop_jax.errors import InputError, Stopped, TrainingError
from rdrop_jax.files import disk
from rdrop_jax.training import distributed

# Threads, the heap and jaxlib itself reserve more than they use.
_ADDRESS_SPACE = 1_500_000 * 1024

# glibc's mallopt: parameter, value.
_MALLOPT = (
    # First, because older versions reject it, and without it the rest is harmful.
    (-3, 2**31 - 1),  # M_MMAP_THRESHOLD: allocate large blocks on the heap
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: never return heap memory to the kernel
    (-2, 64 * 2**20),  # M_TOP_PAD: grow the heap in large steps
)
_SMALLER = "Lower batch_size or batch_tokens, eval.batch_size or the model's size."
_EXIT_WITHIN = 10.0  # seconds for the threads of a program that failed


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a program's main; print expected errors without a traceback, and exit."""
    tune()
    # orbax logs the traceback of an exception before raising it.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    sys.unraisablehook = _unraisable
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # Unreadable images raise an error that names the file.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # An unusable compilation cache only costs a compilation.
    warnings.filterwarnings("ignore", "Error .* persistent compilation cache entry")
    code = 0
    try:
        check_streams()
        check_address_space()
        with console_messages(), extras.explained("__main__"):
            main(sys.argv[1:])
        if not sys.stdout.closed:
            sys.stdout.flush()
    except Stopped as stopped:
        print(stopped, flush=True)
    except InputError as error:
        code = _fail(f"error: {error}", 2)
    except TrainingError as error:
        code = _fail(f"error: {error}", 1)
    except MemoryError as error:
        code = _fail(f"error: not enough memory. {_SMALLER} {error}".rstrip(), 1)
    except KeyboardInterrupt:
        code = _fail("\ninterrupted. Start again to resume", 130)
    except BrokenPipeError:  # the reader of standard output has exited
        drop_output()
        code = 1
    except OSError as error:
        if error.filename is not None or error.errno not in disk.FULL_CODES:
            raise
        # `disk.explained` converts the errors of all other files.
        drop_output()
        code = _fail(
            f"error: standard output: cannot write ({error.strerror}). Free some space "
            "or redirect it, and start again",
            2,
        )
    raise SystemExit(code)


def _fail(message: str, code: int) -> int:
    """Print an error; force an exit if threads of a failed save do not finish soon."""
    print(message, file=sys.stderr, flush=True)
    timer = threading.Timer(_EXIT_WITHIN, os._exit, [code])
    timer.daemon = True
    timer.start()
    return code


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Suppress messages of tensorstore's threads after a failed save."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def tune() -> None:
    """Apply both settings below; call it before jax is imported."""
    tune_allocator()
    use_compilation_cache()


def tune_allocator() -> bool:
    """Keep large blocks of memory between steps, on Linux with glibc.

    XLA's CPU backend allocates its scratch memory on each call. By default glibc maps
    it from the kernel and unmaps it, and the page faults cost more than many operations
    on the data. Memory that was used once stays allocated to the process.

    Returns:
      True if it was applied; the environment's ``RDROP_ALLOCATOR=default`` prevents it.
    """
    if os.environ.get("RDROP_ALLOCATOR") == "default":
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Stops at the first parameter that is rejected.
    return all(mallopt(parameter, value) == 1 for parameter, value in _MALLOPT)


def check_streams() -> None:
    """Check that standard output is open, before a file reuses its descriptor.

    The null device replaces closed standard input and standard error. Standard output
    escapes characters that it cannot encode, like standard error.

    Raises:
      InputError: standard output is closed.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for number in closed:
        null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        os.set_inheritable(null, True)
        if number == 0:
            sys.stdin = open(null, closefd=False)  # noqa: SIM115
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


class ConsoleHandler(logging.Handler):
    """Print messages of process 0 to standard output, and warnings to standard error.

    On a terminal, the next line overwrites a message with the attribute ``live``.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._open_line = False

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            print(line, file=sys.stderr, flush=True)
        elif distributed.is_first():
            if not sys.stdout.isatty():
                print(line, flush=True)
                return
            live = getattr(record, "live", False)
            if live:  # truncate, because a wrapped line could not be overwritten
                line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\033[K{line}", end="" if live else "\n", flush=True)
            self._open_line = live

    def end_line(self) -> None:
        """End a line that the next message would overwrite."""
        if self._open_line:
            print(flush=True)
        self._open_line = False


@contextlib.contextmanager
def console_messages() -> Iterator[None]:
    """Attach a `ConsoleHandler` to the logger ``rdrop_jax``."""
    logger, handler = logging.getLogger("rdrop_jax"), ConsoleHandler()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False  # other packages attach handlers to the root logger
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.end_line()


def drop_output() -> None:
    """Redirect standard output to the null device, so that exiting does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def check_address_space() -> None:
    """Check ``ulimit -v``: with too low a limit, jax hangs without a message.

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
    """Cache compiled programs on disk, so that a second start compiles nothing.

    Sets jax's environment variables unless the user has set them:
    ``JAX_COMPILATION_CACHE_DIR`` is the folder. ``JAX_ENABLE_COMPILATION_CACHE=false``
    disables the cache. Each host has its folder, because homes may be shared.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if not os.path.isabs(home):  # no home directory: no cache
            return
        folder = Path(home, "rdrop_jax", platform.node() or "host")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
