"""Runs of Weights & Biases and MLflow, each fed by a thread. Needs no jax."""

import importlib
import importlib.util
import logging
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rdrop_jax import extras
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json, write_json

_logger = logging.getLogger(__name__)
# A step, "train" or "validation", and values by name.
Record = tuple[int, str, Mapping[str, float]]
_END_WITHIN = 30.0  # seconds that the end of a run waits for a tracker
_RETRY_AFTER = 60.0  # seconds between attempts after a failure
_PROJECT = "rdrop_jax"


def id_path(workdir: Path, name: str) -> Path:
    """Return the file with the id of a tracker's run."""
    return workdir / f"{name}.json"


class Tracker(Protocol):
    """Run of a tracker, new or resumed; records that it has already are ignored."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None: ...

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None: ...

    def finish(self, result: Mapping[str, Any] | None) -> None: ...


class WandbRun:
    """Run of Weights & Biases, with its id in ``wandb.json`` of the workdir.

    An offline run gets the whole record at each start: ``wandb sync`` of the newest
    folder is enough, and older ones are renamed.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None:
        import wandb

        path = id_path(workdir, "wandb")
        stored = read_json(path) if path.exists() else {"id": uuid.uuid4().hex[:8]}
        write_json(path, stored)
        older = [*(workdir / "wandb").glob(f"offline-run-*-{stored['id']}")]
        online = os.environ.get("WANDB_MODE", "online") == "online"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", workdir.name),
            id=stored["id"],
            resume="allow",
            dir=workdir,
            config=dict(config),
            # Without a key, wandb.init would ask for one.
            mode="offline" if online and not wandb.login(prompt=False) else None,
            settings=wandb.Settings(
                console="off", quiet=True, finish_timeout=_END_WITHIN
            ),
        )
        for folder in older:
            folder.rename(folder.with_name(f"older-{folder.name}"))
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric("*", step_metric="step")
        self._sent = {}
        for kind in ("train", "validation"):
            self._run.define_metric(f"{kind}/step", hidden=True)
            self._sent[kind] = self._run.summary.get(f"{kind}/step", -1)
        where = self._run.dir if self._run.offline else self._run.url
        _logger.info("wandb: run %s, %s", stored["id"], where)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        if step <= self._sent[kind]:
            return
        named = {f"{kind}/{name}": value for name, value in values.items()}
        self._run.log({"step": step, f"{kind}/step": step, **named})
        self._sent[kind] = step

    def finish(self, result: Mapping[str, Any] | None) -> None:
        if result is not None:
            self._run.summary["result"] = dict(result)
        self._run.finish(exit_code=0 if result is not None else 1)


class MlflowRun:
    """Run of MLflow, with its id in ``mlflow.json`` of the workdir."""

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        path = id_path(workdir, "mlflow")
        self._id = self._resumed(read_json(path)["run_id"]) if path.exists() else ""
        self._sent: dict[str, int] = {}  # last step by metric
        if self._id:
            self._client.update_run(self._id, status="RUNNING")
            for name in self._client.get_run(self._id).data.metrics:
                history = self._client.get_metric_history(self._id, name)
                self._sent[name] = max(metric.step for metric in history)
        else:
            run = self._client.create_run(self._experiment(), run_name=workdir.name)
            self._id = run.info.run_id
            write_json(path, {"run_id": self._id})
        known = self._client.get_run(self._id).data.params
        params = [Param(n, str(x)) for n, x in config.items() if n not in known]
        for start in range(0, len(params), 100):  # the limit of a request
            self._client.log_batch(self._id, params=params[start : start + 100])
        uri = mlflow.get_tracking_uri()
        _logger.info("mlflow: run %s in %s", self._id, uri)

    def _resumed(self, stored: str) -> str:
        """Return the id of a run if it still exists, else ""."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(stored)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return ""
        return stored

    def _experiment(self) -> str:
        if "MLFLOW_EXPERIMENT_ID" in os.environ:
            return os.environ["MLFLOW_EXPERIMENT_ID"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            return str(self._client.create_experiment(name))
        return str(found.experiment_id)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {f"{kind}/{name}": value for name, value in values.items()}
        new = [
            Metric(name, value, now, step)
            for name, value in named.items()
            if step > self._sent.get(name, -1)
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)
            self._sent |= dict.fromkeys(named, step)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        for split, scores in scores_of(result or {}).items():
            self.log(result["step"] if result else 0, f"result/{split}", scores)
        status = "KILLED" if result is None else "FINISHED"
        self._client.set_terminated(self._id, status)
        if result is not None:
            self._client.log_dict(self._id, dict(result), "result.json")


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbRun, "mlflow": MlflowRun}


def check_installed(names: Collection[str]) -> None:
    """Check that the packages of trackers are installed, without importing them.

    Raises:
      InputError: with the command that installs the package.
    """
    for name in TRACKERS:
        if name in names and importlib.util.find_spec(name) is None:
            raise InputError(f"log.trackers: {extras.missing(name)}")


def scores_of(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the scores in result.json by split."""
    return {
        split: scores
        for split, scores in result.items()
        if isinstance(scores, dict)
        and scores
        and all(type(score) in (int, float) for score in scores.values())
    }


class Follower:
    """Thread that sends records to a tracker, and tries again after failures.

    Training never waits for it. A failure is a warning, once until the next success.

    Args:
      name: name of the tracker in `TRACKERS`.
      workdir: folder of the run.
      config: flat config of the run.
      records: records of the run up to the step that it resumes from.
    """

    def __init__(
        self,
        name: str,
        workdir: Path,
        config: Mapping[str, Any],
        records: Sequence[Record] = (),
    ) -> None:
        self._name, self._start = name, (workdir, config)
        self._tracker: Tracker | None = None
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._result: Mapping[str, Any] | None = None
        for record in records:
            self._queue.put(record)
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Send a record, without waiting."""
        self._queue.put(record)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Finish the tracker's run, without waiting; see `close`."""
        self._result = result
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the end of the tracker's run, but no longer than ``seconds``."""
        self._thread.join(max(seconds, 0))
        if self._thread.is_alive():
            self._warn(f"not finished within {_END_WITHIN:.0f} seconds")

    def _run(self) -> None:
        pending: deque[Record | None] = deque()
        failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
        failed, tried = False, -_RETRY_AFTER
        try:
            failures = (*failures, _error_of(self._name))
        except ImportError as error:
            self._warn(str(error))
            return
        while True:
            pending.append(self._queue.get())
            ends = pending[-1] is None
            if failed and not ends and time.monotonic() - tried < _RETRY_AFTER:
                continue
            tried = time.monotonic()
            try:
                self._send(pending)
            except failures as error:
                if not failed or ends:
                    self._warn(str(error))
                failed = True
            else:
                failed = False
            if ends:
                return

    def _send(self, pending: deque[Record | None]) -> None:
        """Send all pending records; one that fails stays pending."""
        self._tracker = self._tracker or TRACKERS[self._name](*self._start)
        while pending:
            if (record := pending[0]) is None:
                self._tracker.finish(self._result)
            else:
                self._tracker.log(*record)
            pending.popleft()

    def _warn(self, reason: str) -> None:
        _logger.warning(
            "log.trackers: %s: %s. Training is not affected, and metrics.jsonl has all "
            "values. Start a complete or stopped run again to send what is missing",
            self._name,
            " ".join(reason.split())[:300].rstrip("."),
        )


def close(followers: Sequence[Follower], result: Mapping[str, Any] | None) -> None:
    """Finish the runs of trackers, and wait for all of them for a limited time.

    Args:
      followers: threads of the trackers.
      result: content of result.json; None if the run is not complete.
    """
    for follower in followers:
        follower.finish(result)
    deadline = time.monotonic() + _END_WITHIN
    for follower in followers:
        follower.wait(deadline - time.monotonic())


def _error_of(name: str) -> type[Exception]:
    """Import the package of a tracker and return the base of its exceptions."""
    if name == "wandb":
        return importlib.import_module("wandb").Error
    return importlib.import_module("mlflow.exceptions").MlflowException
