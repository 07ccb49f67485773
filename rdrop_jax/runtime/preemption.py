"""SIGTERM and SIGINT as a flag that the training loop reads. Needs no jax."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from rdrop_jax.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Whether this process was asked to end.

    Attributes:
      signal: name of the signal that asked; empty before.
    """

    def __init__(self) -> None:
        self.signal = ""

    def reached(self, step: int) -> bool:
        """Whether to end after this step."""
        del step
        return bool(self.signal)

    def check(self, where: str) -> None:
        """Raises once asked.

        Args:
          where: what is said of the run, such as "at step 7: saved".

        Raises:
          Stopped: says which signal it was and how to go on.
        """
        if self.signal:
            raise Stopped(f"stopped by {self.signal} {where}; start again to go on")


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Takes SIGTERM and SIGINT as a wish to end; a second one ends at once.

    Python runs handlers between bytecodes, so never during a compilation. A thread that
    reads the wakeup pipe sees every signal when it comes.

    Yields:
      The flag; it stays unset where this is not the main thread, as only that one may
      take signals.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    receive, send = os.pipe()
    os.set_blocking(send, False)

    def watch() -> None:
        while number := os.read(receive, 1):
            if number[0] not in _SIGNALS:
                continue
            if stop.signal:
                os._exit(128 + number[0])
            stop.signal = signal.Signals(number[0]).name

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    # The pipe does the work: all they need is not to be the default.
    before = {s: signal.signal(s, lambda number, frame: None) for s in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        os.close(send)
        watcher.join()
        os.close(receive)
