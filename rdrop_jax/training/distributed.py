"""Multi-process training: command-line flags and initialization.

Imports jax inside functions only, so that a command line is checked without it.
"""

import argparse
import contextlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rdrop_jax.errors import InputError
from rdrop_jax.training import preemption
from rdrop_jax.training.preemption import Stop

_logger = logging.getLogger(__name__)
_FAILED = -2
_MAX_PROCESSES = 10**6
_MAX_SECONDS = 10**6
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):([0-9]{1,5})")


@dataclass(frozen=True)
class Cluster:
    """Cluster settings of this process.

    Attributes:
      coordinator: HOST:PORT of process 0; None lets JAX detect the first three fields.
      num_processes: total number of processes.
      process_id: index of this process, from 0.
      start_timeout: seconds to wait until all processes have connected.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as
        dead and the other processes exit.
    """

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    start_timeout: int
    heartbeat_timeout: int


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `from_flags` reads."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="let JAX detect the cluster (Slurm, Open MPI, TPU, GKE)",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0"
    )
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I", help="from 0 to N - 1")
    group.add_argument(
        "--start_timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="limit for all processes to connect; default: 300",
    )
    group.add_argument(
        "--heartbeat_timeout",
        type=int,
        default=100,
        metavar="SECONDS",
        help="limit without a heartbeat of a process; default: 100",
    )


def from_flags(args: argparse.Namespace) -> Cluster | None:
    """Return the cluster that a command line specifies; None for a single process.

    Raises:
      InputError: only some of the three flags, or a value out of range.
    """
    names = ("coordinator", "num_processes", "process_id")
    given = [name for name in names if getattr(args, name) is not None]
    if 0 < len(given) < len(names):
        raise InputError(
            "--coordinator, --num_processes, --process_id: expected all three, found "
            f"only --{', --'.join(given)}"
        )
    for name in ("start_timeout", "heartbeat_timeout"):
        if not 1 <= getattr(args, name) <= _MAX_SECONDS:
            raise InputError(
                f"--{name}: expected from 1 to {_MAX_SECONDS} seconds, found "
                f"{getattr(args, name)}"
            )
    if not given:
        if not args.distributed:
            return None
        return Cluster(None, None, None, args.start_timeout, args.heartbeat_timeout)
    match = _ADDRESS.fullmatch(args.coordinator)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise InputError(
            f"--coordinator: expected HOST:PORT, found {args.coordinator!r}"
        )
    if not 1 <= args.num_processes <= _MAX_PROCESSES:
        raise InputError(
            f"--num_processes: expected from 1 to {_MAX_PROCESSES}, found "
            f"{args.num_processes}"
        )
    if not 0 <= args.process_id < args.num_processes:
        raise InputError(
            f"--process_id: expected from 0 to {args.num_processes - 1}, found "
            f"{args.process_id}"
        )
    return Cluster(
        args.coordinator,
        args.num_processes,
        args.process_id,
        args.start_timeout,
        args.heartbeat_timeout,
    )


def start(cluster: Cluster) -> int:
    """Initialize `jax.distributed` if needed; call before the first use of a device.

    If not all processes connect within ``start_timeout``, this process exits with a
    message and status 2.

    Args:
      cluster: settings from `from_flags`.

    Returns:
      The index of this process.

    Raises:
      InputError: JAX detected no cluster.
    """
    import jax

    if not jax.distributed.is_initialized():
        timer = threading.Timer(cluster.start_timeout, _give_up, [cluster])
        timer.daemon = True
        timer.start()
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                initialization_timeout=cluster.start_timeout + 60,
                heartbeat_timeout_seconds=cluster.heartbeat_timeout,
                # Limits how long a process that fails alone waits for the rest.
                shutdown_timeout_seconds=cluster.heartbeat_timeout,
            )
        except ValueError as error:
            if cluster.coordinator is not None:
                raise
            raise InputError(
                "--distributed: expected a cluster that JAX detects (Slurm, Open MPI, "
                f"TPU, GKE), found none: {error} Give --coordinator, --num_processes "
                "and --process_id"
            ) from error
        finally:
            timer.cancel()
    return jax.process_index()


def joined() -> bool:
    """Return whether `jax.distributed` is initialized. Does not import jax."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def process() -> tuple[int, int]:
    """Return the index of this process and the number of processes."""
    import jax

    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Return whether this is process 0; True for a single process."""
    return not joined() or sys.modules["jax"].process_index() == 0


def from_process_0(decide: Callable[[], int]) -> int:
    """Broadcast an integer decided on process 0 to all processes.

    Args:
      decide: function called on process 0 only; returns an integer of at least -1.

    Raises:
      InputError: ``decide`` failed. Process 0 raises the original error instead.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return decide()
    found, failure = _FAILED, None
    if jax.process_index() == 0:
        try:
            found = decide()
        except (ValueError, OSError) as error:  # InputError is a ValueError
            failure = error
    found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
    if failure is not None:
        raise failure
    if found == _FAILED:
        raise InputError("process 0 cannot continue; see its message")
    return found


def write_on_process_0(write: Callable[[], object]) -> None:
    """Call a function on process 0 alone, before any process continues.

    Raises:
      InputError: ``write`` failed. Process 0 raises the original error instead.
    """

    def written() -> int:
        write()
        return 0

    from_process_0(written)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """`preemption.stoppable`; with several processes, all stop at the same step.

    With several processes, JAX handles the first SIGTERM on any of them and chooses a
    step that no process has passed. A signal after the last step has no effect. SIGHUP
    counts as SIGTERM. SIGINT exits immediately. A second signal ends this process, even
    while it waits for the other processes.
    """
    if joined():
        with preemption.shared(_SharedStop()) as stop:
            yield stop
        return
    with preemption.stoppable() as stop:
        yield stop


class _SharedStop(Stop):
    def reached(self, step: int) -> bool:
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = "SIGTERM"
        return bool(self.signal)


def _give_up(cluster: Cluster) -> None:
    where = cluster.coordinator or "the detected coordinator"
    count = cluster.num_processes or "all"
    _logger.error(
        "error: --coordinator: expected %s processes at %s within %d s, found fewer. "
        "Check that process 0 is up, its port open and the address the same everywhere",
        count,
        where,
        cluster.start_timeout,
    )
    os._exit(2)
