"""Writers of metrics: terminal, metrics.jsonl and TensorBoard."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from rdrop_jax.files.disk import as_record, explained, open_regular, write_text


class Writers:
    """Write logs and metrics on process 0; do nothing on other processes.

    Args:
      workdir: folder of the run.
      tensorboard: True to write TensorBoard events.
      active: True on process 0 only.
    """

    def __init__(self, workdir: Path, *, tensorboard: bool, active: bool) -> None:
        self._active = active
        self._live = active and sys.stdout.isatty()
        self._open_line = False
        if not active:
            return
        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            with explained(workdir), open_regular(self._path, "a+"):
                pass
        self._board = open_events(workdir / "events") if tensorboard else None

    def cut(self, step: int) -> None:
        """Drop records after ``step``, which a resumed run will write again.

        A truncated last line is dropped silently, other invalid lines with a message.
        """
        if not self._active or not self._path.exists():
            return
        with explained(self._path.parent), open_regular(self._path, "rb") as file:
            *lines, _ = file.read().split(b"\n")
        steps = [step_of(line) for line in lines]
        if None in steps:
            self.say(
                f"{self._path}: expected a record with a step per line, found "
                f"{steps.count(None)} other lines; dropped them"
            )
        kept = [
            line.decode()
            for line, at in zip(lines, steps, strict=True)
            if at is not None and at <= step
        ]
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    def say(self, line: str, *, live: bool = False) -> None:
        """Print a line; on a terminal, the next line overwrites a live one."""
        if not self._active:
            return
        if not self._live:
            print(line, flush=True)
            return
        if live:  # truncate, because a wrapped line could not be overwritten
            line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="" if live else "\n", flush=True)
        self._open_line = live

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
        """End an open live line and close TensorBoard's file."""
        if not self._active:
            return
        if self._open_line:
            print()
        if self._board is not None:
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


def parameter_table(params: Any) -> str:
    """Return a table with one line per parameter; repeated blocks share a line."""
    rows: dict[tuple[str, str], int] = {}
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = "x".join(map(str, leaf.shape)) or "scalar"
        row = (re.sub(r"_\d+", "_*", name), f"{shape} {leaf.dtype}")
        rows[row] = rows.get(row, 0) + 1
        total += leaf.size
    lines = [
        f"  {name:<44} {shape:<20}" + (f" x {n}" if n > 1 else "")
        for (name, shape), n in rows.items()
    ]
    return "\n".join([*(line.rstrip() for line in lines), f"  {total:,} parameters"])
