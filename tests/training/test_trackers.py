"""TensorBoard, Weights & Biases and MLflow, against metrics.jsonl."""

import importlib
import importlib.util
import json
import math
import os
import signal
import struct
import sys
import threading
import time
import types

import pytest
from helpers.programs import run, start, train_argv
from helpers.tiny import config, train
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rdrop_jax.cli import flags
from rdrop_jax.cli import train as train_program
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_records
from rdrop_jax.training import trackers, writers

TIMES = {"steps_per_second", "data_wait"}  # measured again in a resumed run


def records(workdir):
    """{(step, "train/ce"): value} of metrics.jsonl; fails on duplicates."""
    found = {}
    for record in read_records(workdir / "metrics.jsonl"):
        step, kind = record.pop("step"), record.pop("kind")
        for name, value in record.items():
            assert (step, f"{kind}/{name}") not in found
            found[step, f"{kind}/{name}"] = value
    return found


def board(workdir):
    """Scalars that TensorBoard shows, and the text of configs."""
    shown, texts = [], []
    for path in sorted(workdir.glob("events/*"), key=lambda path: path.stat().st_mtime):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = [found for found in shown if found[0] < event.step]
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts.append(value.tensor.string_val[0].decode())
                else:
                    shown.append((event.step, value.tag, value.simple_value))
    found = {(step, tag): value for step, tag, value in shown}
    assert len(found) == len(shown)
    return found, texts


def same(found, wanted, *, single=False):
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        expected = struct.unpack("f", struct.pack("f", value))[0] if single else value
        assert found[key] == expected or math.isnan(expected), key


def result_scores(result):
    step, scores = result["step"], trackers.scores_of(result)
    assert scores.keys() == {"validation", "test"}
    return {
        (step, f"result/{split}/{name}"): value
        for split, values in scores.items()
        for name, value in values.items()
    }


class Tracker:
    """A tracker in memory, which fails as often as ``failures`` says."""

    failures, gate = 0, None

    def __init__(self, workdir, config):
        self.fail()
        self.runs.append(self)
        self.config, self.records, self.result = config, [], "none"

    def fail(self):
        if type(self).gate:
            type(self).gate.wait(10)
        if type(self).failures:
            type(self).failures -= 1
            raise OSError("no network")

    def log(self, step, kind, values):
        self.fail()
        self.records.append((step, kind, values))

    def finish(self, result):
        self.result = result


@pytest.fixture
def fake(monkeypatch):
    """Replaces wandb by a tracker in memory."""
    kind = type("Fake", (Tracker,), {"runs": []})
    monkeypatch.setitem(trackers.TRACKERS, "wandb", kind)
    monkeypatch.setattr(trackers, "_error_of", lambda name: KeyError)
    monkeypatch.setattr(trackers, "check_installed", lambda names: None)
    monkeypatch.setattr(trackers, "_RETRY_AFTER", 0.0)
    return kind


def test_a_tracker_gets_config_records_and_result(fake, tmp_path):
    result = train(tmp_path, log__trackers="tensorboard,wandb")
    (run,) = fake.runs
    assert run.config["rdrop.alpha"] == config().rdrop.alpha
    assert run.result == result
    found = {
        (step, f"{kind}/{name}"): value
        for step, kind, values in run.records
        for name, value in values.items()
    }
    same(found, records(tmp_path))
    shown, texts = board(tmp_path)
    same(shown, records(tmp_path) | result_scores(result), single=True)
    assert "    rdrop.alpha = 1.0" in texts[0]


def test_a_tracker_added_later_gets_the_whole_record(fake, tmp_path):
    out = writers.MetricsWriter(tmp_path, active=True)
    for step in (1, 2, 3):
        out.record(step, "train", {"ce": 1.0 / step})
    out.close()
    out = writers.MetricsWriter(tmp_path, ["tensorboard", "wandb"], active=True)
    out.resume(2)
    out.record(3, "train", {"ce": 0.5})
    out.close()
    steps = [(1, 1.0), (2, 0.5), (3, 0.5)]
    assert fake.runs[0].records == [(s, "train", {"ce": x}) for s, x in steps]
    assert fake.runs[0].result is None
    assert board(tmp_path)[0] == {(s, "train/ce"): x for s, x in steps}


def test_a_resumed_board_drops_later_values(tmp_path, monkeypatch):
    for first in (1, 3):
        monkeypatch.setattr(os, "getpid", lambda first=first: first)
        out = writers.MetricsWriter(tmp_path, ["tensorboard"], active=True)
        out.resume(first - 1)
        for step in range(first, 6):
            out.record(step, "train", {"ce": float(step * first)})
        out.close()
    found = {(s, "train/ce"): s * (1.0 if s < 3 else 3.0) for s in range(1, 6)}
    assert board(tmp_path)[0] == found


def test_failures_are_warned_of_once_and_made_up_for(fake, tmp_path, capsys):
    fake.failures = 3
    follower = trackers.Follower("wandb", tmp_path, {})
    for step in range(6):
        follower.add((step, "train", {"ce": 1.0}))
    trackers.close([follower], {"step": 5})
    (run,) = fake.runs
    assert [step for step, *_ in run.records] == list(range(6))
    assert run.result == {"step": 5}
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("log.trackers: wandb: no network. Train") == 1


def test_a_run_that_starts_anew_gets_new_runs_of_trackers(tmp_path):
    stored = [tmp_path / f"{name}.json" for name in ("wandb", "mlflow")]
    for step, kept in ((2, True), (0, False)):
        for path in stored:
            path.write_text("{}")
        out = writers.MetricsWriter(tmp_path, active=True)
        out.resume(step)
        out.close()
        assert [path.exists() for path in stored] == [kept, kept]


def test_a_tracker_never_stops_or_delays_training(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "_END_WITHIN", 0.1)
    fake.gate = threading.Event()
    out = writers.MetricsWriter(tmp_path, ["wandb"], active=True)
    out.resume(0)
    before = time.perf_counter()
    for step in range(100):
        out.record(step, "train", {"ce": 1.0})
    assert time.perf_counter() - before < 2
    out.close()
    assert "wandb: not finished within" in capsys.readouterr().err
    fake.gate.set()
    (follower,) = out._followers
    follower._thread.join()
    assert len(records(tmp_path)) == 100


@pytest.mark.slow
def test_a_failure_until_the_end_is_a_warning(fake, tmp_path, capsys):
    fake.failures = 10**9
    assert train(tmp_path, log__trackers="wandb")["step"] == 6
    err = capsys.readouterr().err
    assert "log.trackers: wandb: no network. Training is not affected" in err
    fake.failures = 0
    train(tmp_path, log__trackers="wandb")
    assert len(fake.runs[0].records) == 5
    assert fake.runs[0].result["step"] == 6


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_jax_starts(name, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"log.trackers: {name} is not .*\[{name}\]"):
        train_program.check_start(config(log__trackers=name), tmp_path)


@pytest.mark.parametrize("text", ["tensorbord", "('wandb', 5)", "wandb,"])
def test_unknown_trackers_are_refused(text):
    wanted = "log.trackers: expected names of tensorboard, wandb, mlflow, found"
    with pytest.raises(InputError, match=wanted):
        flags.load("configs/vit.py", {"log.trackers": text})


@pytest.mark.parametrize("text", ["()", "wandb,mlflow", "('wandb', 'mlflow')"])
def test_trackers_are_a_list_of_names(text):
    found = flags.load("configs/vit.py", {"log.trackers": text}).log.trackers
    assert found == (() if text == "()" else ("wandb", "mlflow"))


def wandb_rows(folder):
    """Rows and summary of an offline run: records in blocks of 32 KiB."""
    pb = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("*.wandb")
    data, at, part = path.read_bytes(), 7, b""
    rows, summary, code = [], {}, None
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # the last part of a record
            record, part = pb.Record.FromString(part), b""
            items = {
                ".".join([*item.nested_key] or [item.key]): json.loads(item.value_json)
                for item in (*record.history.item, *record.summary.update)
            }
            if record.HasField("history"):
                rows.append(items)
            summary |= items
            code = record.exit.exit_code if record.HasField("exit") else code
    return rows, summary, code


def wandb_scalars(rows):
    found = {}
    for row in rows:
        for name, value in row.items():
            if "/" in name and not name.endswith("/step"):
                assert (row["step"], name) not in found
                found[row["step"], name] = value
    return found


def mlflow_scalars(store, workdir):
    client = importlib.import_module("mlflow").MlflowClient(store)
    run = client.get_run(json.loads((workdir / "mlflow.json").read_text())["run_id"])
    found = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            assert (metric.step, name) not in found
            found[metric.step, name] = metric.value
    return found, run


def test_mlflow_gets_the_fields_that_an_earlier_start_could_not_send(
    tmp_path, monkeypatch
):
    found = {}

    class Client:
        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id="1")

        def create_run(self, experiment, run_name):
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

        def get_run(self, run):
            return types.SimpleNamespace(
                data=types.SimpleNamespace(params=found, metrics={})
            )

        def update_run(self, run, status):
            pass

        def log_batch(self, run, params):
            found.update(params[:1])
            if len(params) > 1:
                raise OSError("no network")

    package = types.SimpleNamespace(MlflowClient=Client, get_tracking_uri=lambda: "")
    entities = types.SimpleNamespace(Param=lambda name, value: (name, value))
    errors = types.SimpleNamespace(MlflowException=KeyError)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", errors)
    fields = {"rdrop.alpha": 1.0, "seed": 2}
    with pytest.raises(OSError, match="no network"):
        trackers.MlflowRun(tmp_path, fields)
    trackers.MlflowRun(tmp_path, fields)
    assert found == {"rdrop.alpha": "1.0", "seed": "2"}


@pytest.mark.slow
def test_killed_and_resumed_all_trackers_have_the_same_values(tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    store = f"file://{tmp_path}/store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    argv = train_argv(workdir, "--config.log.trackers=tensorboard,wandb,mlflow")
    argv += ["--config.total_steps=600", "--config.checkpoint.every=100"]
    process = start("train", *argv, start_new_session=True)
    for line in process.stdout:
        sent = [*(tmp_path / "store").rglob("metrics/train/ce")]
        enough = sent and len(sent[0].read_text().splitlines()) > 30
        if enough and line.startswith("step") and not line.split("/")[0].endswith("00"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (workdir / "result.json").exists()
    code, out, err = run("train", *argv)
    assert code == 0, err
    assert "resuming from step" in out
    result = json.loads((workdir / "result.json").read_text())
    wanted, scores = records(workdir), result_scores(result)
    same(board(workdir)[0], wanted | scores, single=True)
    check_wandb(workdir, wanted, result)
    found, run_ = mlflow_scalars(store, workdir)
    again = {key for key in wanted if key[1].split("/")[1] in TIMES}
    assert found.keys() == wanted.keys() | scores.keys()
    same({k: x for k, x in found.items() if k not in again},
         {k: x for k, x in (wanted | scores).items() if k not in again})  # fmt: skip
    assert run_.info.status == "FINISHED"
    assert run_.data.params["rdrop.alpha"] == "1.0"
    (stored,) = (tmp_path / "store").rglob("artifacts/result.json")
    assert json.loads(stored.read_text()) == result


def check_wandb(workdir, wanted, result):
    (folder,) = (workdir / "wandb").glob("offline-run-*")
    rows, summary, code = wandb_rows(folder)
    same(wandb_scalars(rows), wanted)
    assert summary["result"]["test"] == result["test"]
    assert code == 0
    assert len([*(workdir / "wandb").glob("older-offline-run-*")]) == 1
    name = json.loads((workdir / "wandb.json").read_text())["id"]
    assert folder.name.endswith(name)


def test_trackers_are_imported_only_if_named():
    assert not {"wandb", "mlflow"} & sys.modules.keys()
