"""SIGTERM, SIGINT and SIGHUP as a flag that the training loop reads. Needs no jax."""

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

from rdrop_jax.errors import Stopped


class Stop:
    """Request to end this process.

    Attributes:
      signal: name of the signal that requested it; empty before.
    """

    def __init__(self) -> None:
        self.signal = ""

    def reached(self, step: int) -> bool:
        """Return whether to stop after this step."""
        del step
        return bool(self.signal)

    def raise_if_requested(self, where: str) -> None:
        """Raise if a stop was requested.

        Args:
          where: state of the run, such as "at step 7: saved".

        Raises:
          Stopped: a signal requested a stop; the message explains how to resume.
        """
        if self.signal:
            raise Stopped(f"stopped by {self.signal} {where}. Start again to resume")


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """First SIGTERM, SIGINT or SIGHUP: stop gracefully. Second: exit immediately.

    A SIGHUP that was ignored at the start, as by ``nohup``, stays ignored.

    Yields:
      The flag. It stays unset outside the main thread, because only that thread can
      handle signals.
    """
    stop = Stop()

    def first(number: int) -> None:
        stop.signal = signal.Signals(number).name

    signals = (signal.SIGTERM, signal.SIGINT, *_hangup())
    with _watched(signals, first, quiet=signals):
        yield stop


@contextlib.contextmanager
def shared(stop: Stop) -> Iterator[Stop]:
    """Pass the first SIGTERM to JAX; a second signal ends this process.

    JAX's handler consumes every SIGTERM. Without this, a process that waits for other
    processes could not be ended by SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    # JAX's handler, which is installed in C and unknown to Python.
    address = libc.signal(signal.SIGTERM, None)
    known = address not in (None, int(signal.SIG_IGN))
    notify = ctypes.CFUNCTYPE(None, ctypes.c_int)(address) if known else None

    def first(number: int) -> None:
        if number != signal.SIGINT and notify:  # Python raises KeyboardInterrupt
            notify(signal.SIGTERM)

    try:
        taken = (signal.SIGTERM, *_hangup())
        with _watched((*taken, signal.SIGINT), first, quiet=taken):
            yield stop
    finally:
        libc.signal(signal.SIGTERM, address)


def _hangup() -> list[signal.Signals]:
    """Return SIGHUP in a list; an empty list if it was ignored at the start."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [] if ignored else [signal.SIGHUP]


@contextlib.contextmanager
def _watched(
    signals: Sequence[signal.Signals],
    first: Callable[[int], None],
    *,
    quiet: Sequence[signal.Signals],
) -> Iterator[None]:
    """Call ``first`` for the first signal, and exit at the second one.

    Python runs handlers between bytecodes, so never during a compilation or a
    collective. A thread that reads the wakeup pipe sees every signal immediately.

    Args:
      signals: signals to watch.
      first: function called in that thread with the number of the first signal.
      quiet: signals whose Python handler is replaced by one that does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)

    def watch() -> None:
        asked = False
        while number := os.read(receive, 1):
            if number[0] not in signals:
                continue
            if asked:
                os._exit(128 + number[0])
            asked = True
            first(number[0])

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    # The watcher does the work; these handlers only replace the default action.
    before = {s: signal.signal(s, lambda number, frame: None) for s in quiet}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        os.close(send)
        watcher.join()
        os.close(receive)
