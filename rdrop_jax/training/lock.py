"""One training process per workdir. Needs no jax."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import explained, open_regular

# Some network file systems have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Lock a workdir, created if absent; the kernel releases the lock on exit.

    Raises:
      InputError: another process holds the lock; the message names it.
    """
    with explained(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open_regular(workdir / "lock", "a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"--workdir: expected {workdir} for this process alone, found "
                f"{file.read().strip() or 'another process'} training there"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"{workdir} cannot be locked ({error.strerror}): start no second "
                "training there",
                file=sys.stderr,
            )
        with explained(workdir):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield
