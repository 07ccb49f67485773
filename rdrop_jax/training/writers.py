"""Writer of metrics to metrics.jsonl and TensorBoard."""

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from rdrop_jax.files.disk import as_record, explained, open_regular, write_text

_logger = logging.getLogger(__name__)


class MetricsWriter:
    """Write metrics on process 0; do nothing on other processes.

    Args:
      workdir: folder of the run.
      tensorboard: True to write TensorBoard events.
      active: True to write; None on process 0 only.
    """

    def __init__(
        self, workdir: Path, tensorboard: bool, *, active: bool | None = None
    ) -> None:
        self._active = jax.process_index() == 0 if active is None else active
        if not self._active:
            return
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            with explained(workdir), open_regular(self._path, "a+"):
                pass
        self._board = open_events(workdir / "events") if tensorboard else None

    def truncate(self, step: int) -> None:
        """Drop records after ``step``, which a resumed run will write again.

        A truncated last line is dropped silently, other invalid lines with a message.
        """
        if not self._active or not self._path.exists():
            return
        with explained(self._path.parent), open_regular(self._path, "rb") as file:
            *lines, _ = file.read().split(b"\n")
        steps = [step_of(line) for line in lines]
        if None in steps:
            _logger.info(
                "%s: expected a record with a step per line, found %d other lines; "
                "dropped them",
                self._path,
                steps.count(None),
            )
        kept = [
            line.decode()
            for line, at in zip(lines, steps, strict=True)
            if at is not None and at <= step
        ]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append a record to metrics.jsonl and its scalars to TensorBoard."""
        if not self._active:
            return
        record = {"step": step, "kind": kind, **values}
        with explained(self._path.parent):
            with open_regular(self._path, "a") as file:
                file.write(json.dumps(record) + "\n")
            if self._board is not None:
                now = time.time()
                for name, value in values.items():
                    summary = scalar(f"{kind}/{name}", value)
                    self._board.write_event(
                        Event(wall_time=now, step=step, summary=summary)
                    )
                self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._active and self._board is not None:
            with explained(self._path.parent):
                self._board.close()


def open_events(folder: Path) -> EventsWriter:
    """Open a new TensorBoard file that is written synchronously.

    tensorboardX's default writer uses a thread that hangs once the disk has been full.
    """
    with explained(folder):
        folder.mkdir(exist_ok=True)
        return EventsWriter(str(folder / "events"), f".{os.getpid()}")


def step_of(line: bytes) -> int | None:
    """Return the step of a line of metrics.jsonl; None if it is not a record."""
    record = as_record(line)
    return None if record is None else int(record["step"])
