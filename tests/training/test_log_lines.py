"""Log lines of a run, log steps by seconds, and the record in result.json."""

import json
import sys
from datetime import UTC, datetime

import jax
import pytest
from helpers import messages
from helpers.tiny import config as tiny_config
from helpers.tiny import train

from rdrop_jax import config as config_lib
from rdrop_jax import versions
from rdrop_jax.errors import InputError
from rdrop_jax.training import log_lines, window


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("timed")
    start = datetime.now(UTC).replace(microsecond=0)
    with messages.collected() as said:
        result = train(workdir, log__every="600 seconds")
    return workdir, result, said, start


def test_a_run_reports_its_machine_and_its_data(timed):
    said = "\n".join(timed[2])
    found = versions.versions()
    first = f"rdrop_jax {found['rdrop_jax']}, jax {found['jax']}; "
    assert f"{first}{versions.devices()}, processes: 1" in said
    assert "weights: random initialization (init_from is empty); model: vit" in said
    assert "data: train 1,257 rows, validation 180 rows, test 360 rows, " in said
    assert "steps per epoch" in said
    order = ["reading the data", "data: train", "compiling the train step"]
    order += ["compiled in", "first validation"]
    assert sorted(order, key=said.index) == order


@pytest.mark.parametrize(
    ("listed", "platforms", "hint"),
    [
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)", "", True),
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)", "cpu", False),
        ("No devices were found", "", False),
    ],
)
def test_a_gpu_that_jax_does_not_use(listed, platforms, hint, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{listed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    lines = log_lines.start_lines(tiny_config(), 0)
    command = f'{sys.executable} -m pip install "jax[cuda12]=={jax.__version__}"'
    assert any(command in line for line in lines) == hint
    assert all("\n" not in line for line in lines)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert log_lines.unused_gpu() == ""


@pytest.mark.parametrize("name", ["optimizer.warmup", "rdrop.alpha_warmup"])
def test_a_warmup_longer_than_the_run_is_reported(name):
    fields = {name.replace(".", "__"): 6}
    line = f"{name}=6 is longer than total_steps=5: the run ends before the end of the "
    lines = log_lines.start_lines(tiny_config(total_steps=5, **fields), 0)
    assert lines[-1] == line + "warmup"
    lines = log_lines.start_lines(tiny_config(total_steps=6, **fields), 0)
    assert not any("warmup" in line for line in lines)


def test_the_result_has_versions_devices_command_and_dates(timed):
    workdir, result, _, start = timed
    run = json.loads((workdir / "result.json").read_bytes())["run"]
    assert run == result["run"]
    names = {*versions.PACKAGES, "rdrop_jax", "python"}
    assert set(run["versions"]) == names
    assert run["devices"] == versions.devices()
    assert run["device_count"] >= 1
    assert run["command"] == sys.argv
    dates = [datetime.fromisoformat(run[name]) for name in ("started", "finished")]
    assert start <= dates[0] <= dates[1] <= datetime.now(UTC)


def test_a_run_logs_by_seconds(timed):
    """The first lines come early; the distance doubles up to the seconds."""
    lines = (timed[0] / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6]


def test_the_time_left_excludes_compiling(monkeypatch):
    clock = 0.0
    monkeypatch.setattr(window.time, "perf_counter", lambda: clock)
    speed = window.Window(99, 0.0)
    clock = 60.0
    assert speed.compiled(100) == 60.0
    values = {"lr": 0.1, **speed.read(100)}
    line = log_lines.train_line(values, 100, 400, 64.0, speed.eta(100, 400))
    assert line == "step 100/400  lr 1.00e-01  ETA unknown"
    clock = 70.0
    with speed.paused():
        clock = 80.0
    values = {"lr": 0.1, "ce": 2.0, **speed.read(200)}
    line = log_lines.train_line(values, 200, 400, 64.0, speed.eta(200, 400))
    assert line == ("step 200/400  ce 2.0000  lr 1.00e-01  640 examples/s  ETA 0:40")


def logged(steps, pace, seconds, monkeypatch, decide=lambda choose: choose()):
    clock = 0.0
    monkeypatch.setattr(window.time, "perf_counter", lambda: clock)
    due = window.LogSteps(0, 0, seconds, decide)
    found = []
    for step in range(1, steps + 1):
        clock += pace
        if step == 1:
            due.compiled(step)
        if due.due(step):
            found.append(step)
            due.logged(step)
    return found


def test_log_steps_approach_the_seconds(monkeypatch):
    assert logged(40, 1.0, 10.0, monkeypatch) == [2, 4, 8, 16, 26, 36]
    assert logged(6, 30.0, 10.0, monkeypatch) == [2, 3, 4, 5, 6]


def test_process_0_decides_the_log_steps(monkeypatch):
    """A process with another clock logs at the steps that process 0 chose."""
    chosen = []

    def first(choose):
        chosen.append(choose())
        return chosen[-1]

    ours = logged(40, 1.0, 10.0, monkeypatch, first)
    received = iter(chosen)
    theirs = logged(40, 7.0, 10.0, monkeypatch, lambda choose: next(received))
    assert ours == theirs


def test_log_every_takes_steps_epochs_percent_or_seconds():
    for text in ("30s", "30 seconds", "0.5 s"):
        resolved = config_lib.resolve(tiny_config(log__every=text), 10.0)
        assert config_lib.log_seconds(resolved.log.every) == float(text.split("s")[0])
    resolved = config_lib.resolve(tiny_config(log__every="1 epochs"), 10.0)
    assert resolved.log.every == 10
    assert config_lib.log_seconds(resolved.log.every) == 0
    with pytest.raises(InputError, match=r"log\.every: expected .* or 'N seconds'"):
        config_lib.resolve(tiny_config(log__every="30 minutes"), 10.0)
    with pytest.raises(InputError, match=r"eval\.every: expected steps or"):
        config_lib.resolve(tiny_config(eval__every="30 seconds"), 10.0)


def test_long_scoring_is_reported_with_its_seconds(monkeypatch):
    times = iter([0.0, 7.2, 10.0, 11.0])
    monkeypatch.setattr(log_lines.time, "perf_counter", lambda: next(times))
    with messages.collected() as said:
        for _ in range(2):
            scores = log_lines.timed("validated", lambda p: {"loss": p}, 0.5)
            assert scores == {"loss": 0.5}
    assert said == ["validated in 7 s"]
