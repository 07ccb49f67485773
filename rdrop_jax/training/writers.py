"""Writer of metrics to metrics.jsonl, TensorBoard and other trackers."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar, text

from rdrop_jax.files.disk import as_record, explained, open_regular, write_text
from rdrop_jax.training.trackers import (
    TRACKERS,
    Follower,
    Record,
    close,
    id_path,
    scores_of,
)

_logger = logging.getLogger(__name__)


class MetricsWriter:
    """Write metrics on process 0; do nothing on other processes.

    Args:
      workdir: folder of the run.
      trackers: names of trackers, as in ``log.trackers``.
      config: flat config of the run, for the trackers.
      active: True to write; None on process 0 only.
    """

    def __init__(
        self,
        workdir: Path,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        *,
        active: bool | None = None,
    ) -> None:
        self._active = jax.process_index() == 0 if active is None else active
        if not self._active:
            return
        self._path, self._config = workdir / "metrics.jsonl", config or {}
        if self._path.exists():
            with explained(workdir), open_regular(self._path, "a+"):
                pass
        self._names = [name for name in TRACKERS if name in trackers]
        self._followers: list[Follower] = []
        self._result: Mapping[str, Any] | None = None
        self._board = None
        if "tensorboard" in trackers:
            self._board = TensorBoard(workdir / "events")

    def resume(self, step: int) -> None:
        """Drop records after ``step``, which a resumed run will write again.

        A truncated last line is dropped silently, other invalid lines with a message.
        Trackers get the records that are left, unless they have them already. A run
        that starts at step 0 gets new runs of the trackers: its config may be another.
        """
        if not self._active:
            return
        records = self._truncate(step)
        if self._board is not None:
            self._board.start(step, self._config, records)
        folder = self._path.parent
        if step == 0:
            with explained(folder):
                for name in TRACKERS:
                    id_path(folder, name).unlink(missing_ok=True)
        self._followers = [
            Follower(name, folder, self._config, records) for name in self._names
        ]

    def _truncate(self, step: int) -> list[Record]:
        """Drop records of metrics.jsonl after ``step`` and return those left."""
        if not self._path.exists():
            return []
        with explained(self._path.parent), open_regular(self._path, "rb") as file:
            *lines, _ = file.read().split(b"\n")
        found = [(line.decode(errors="replace"), as_record(line)) for line in lines]
        if broken := sum(record is None for _, record in found):
            _logger.info(
                "%s: expected a record with a step per line, found %d other lines; "
                "dropped them",
                self._path,
                broken,
            )
        kept = [(line, r) for line, r in found if r is not None and r["step"] <= step]
        write_text(self._path, "".join(f"{line}\n" for line, _ in kept))
        records = [dict(record) for _, record in kept]
        return [(r.pop("step"), r.pop("kind", "train"), r) for r in records]

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append a record to metrics.jsonl, and send its values to the trackers."""
        if not self._active:
            return
        record = {"step": step, "kind": kind, **values}
        with explained(self._path.parent), open_regular(self._path, "a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            self._board.log(step, kind, values)
        for follower in self._followers:
            follower.add((step, kind, values))

    def result(self, result: Mapping[str, Any], *, new: bool) -> None:
        """Send the result to the trackers, and to TensorBoard if it is new."""
        if not self._active:
            return
        self._result = result
        if self._board is not None and new:
            for split, scores in scores_of(result).items():
                self._board.log(result["step"], f"result/{split}", scores)

    def close(self) -> None:
        """Close TensorBoard's file and finish the runs of the other trackers."""
        if not self._active:
            return
        close(self._followers, self._result)
        if self._board is not None:
            self._board.close()


class TensorBoard:
    """Event files in a folder, one for each start of a run, written synchronously.

    tensorboardX's default writer uses a thread that hangs once the disk has been full.

    Args:
      folder: folder of the event files; created if absent.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._new = folder, not folder.exists()
        with explained(folder):
            folder.mkdir(exist_ok=True)
            self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")

    def start(
        self, step: int, config: Mapping[str, Any], records: Sequence[Record]
    ) -> None:
        """Start after ``step``: later values of earlier files are not shown any more.

        Args:
          step: step that the run resumes from, or 0.
          config: flat config, written as text.
          records: records up to the step, written if the folder is new.
        """
        start = SessionLog(status=SessionLog.START)
        fields = "\n".join(f"    {name} = {x!r}" for name, x in config.items())
        self._write(step + 1, session_log=start)
        self._write(step + 1, summary=text("config", fields))
        for record in records if self._new else ():
            self.log(*record)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write scalars, as ``train/ce``."""
        for name, value in values.items():
            self._write(step, summary=scalar(f"{kind}/{name}", value))
        with explained(self._folder):
            self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        with explained(self._folder):
            self._file.write_event(Event(wall_time=time.time(), step=step, **content))

    def close(self) -> None:
        """Close the file."""
        with explained(self._folder):
            self._file.close()
