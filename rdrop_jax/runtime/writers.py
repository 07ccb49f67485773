"""Where a run writes what it measures: terminal, metrics.jsonl, TensorBoard."""

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

from rdrop_jax.runtime.disk import as_record, explained, open_regular, write_text


class Writers:
    """Writes on process 0 and is silent on the others.

    Args:
      workdir: folder of the run.
      tensorboard: whether to write events.
      active: False on all processes but the first.
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
        """Drops records after ``step``, which a resumed run will make again.

        A last line that was cut off goes in silence, other lines that are no records
        with a message.
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
        """Prints a line; a live one is overwritten by the next on a terminal."""
        if not self._active:
            return
        if not self._live:
            print(line, flush=True)
            return
        if live:  # what does not fit would wrap and stay
            line = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{line}", end="" if live else "\n", flush=True)
        self._open_line = live

    def record(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one line to metrics.jsonl and scalars to TensorBoard."""
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
        """Flushes; a live line stays on the screen."""
        if not self._active:
            return
        if self._open_line:
            print()
        if self._board is not None:
            with explained(self._path.parent):
                self._board.close()


def open_events(folder: Path) -> EventsWriter:
    """A new TensorBoard file, written here and now.

    The writer that tensorboardX offers has a thread, which waits for ever once a disk
    was full.
    """
    with explained(folder):
        folder.mkdir(exist_ok=True)
        return EventsWriter(str(folder / "events"), f".{os.getpid()}")


def step_of(line: bytes) -> int | None:
    """Return the step of a line of metrics.jsonl; None if it is no record."""
    record = as_record(line)
    return None if record is None else int(record["step"])


def parameter_table(params: Any) -> str:
    """One line per parameter; repeated blocks share one."""
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
