"""Processes that differ, and signals to a process that waits for the others."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.processes import TINY, Processes
from helpers.programs import ROOT
from helpers.tiny import config

from rdrop_jax import config as config_lib
from rdrop_jax.errors import InputError
from rdrop_jax.training import agreement, checkpoint, preemption


@pytest.fixture
def two_processes(monkeypatch):
    """This is process 0; what process 1 sends is in ``sent``, in order."""
    sent = []
    monkeypatch.setattr("jax.process_count", lambda: 2)

    def allgather(value):
        return np.stack([value, sent.pop(0)(value)])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", allgather)
    return sent


def test_processes_that_differ_are_told_the_fields(two_processes):
    ours, theirs = {"model.width": 16, "seed": 0}, {"model.width": 32, "seed": 0}
    text = json.dumps(theirs, sort_keys=True).encode()
    two_processes += [
        lambda digest: digest ^ 1,
        lambda length: np.int32(len(text)),
        lambda padded: np.frombuffer(text.ljust(len(padded)), np.uint8),
    ]
    with pytest.raises(InputError) as error:
        agreement.check_equal("--config", ours)
    assert "model.width: process 0 16, process 1 32" in str(error.value)
    assert "seed" not in str(error.value)
    two_processes += [lambda digest: digest]
    agreement.check_equal("--config", ours)


def test_caches_with_different_commits_are_one_line(two_processes):
    ours = {"data.name": "hf:a/b@11"}
    text = json.dumps({"data.name": "hf:a/b@22"}).encode()
    two_processes += [
        lambda digest: digest ^ 1,
        lambda length: np.int32(len(text)),
        lambda padded: np.frombuffer(text.ljust(len(padded)), np.uint8),
    ]
    with pytest.raises(InputError) as error:
        agreement.check_same_commits(ours)
    assert str(error.value) == (
        "data.name: expected the same commit on all processes, got process 0 "
        "'hf:a/b@11', process 1 'hf:a/b@22'. Start every process with one of these "
        "names"
    )
    two_processes += [lambda digest: digest]
    agreement.check_same_commits(ours)


def test_what_processes_share_leaves_out_what_is_local():
    base = config_lib.shared(config())
    local = config(data__prefetch=7, data__workers=3, data__dir="elsewhere")
    assert config_lib.shared(local) == base
    assert config_lib.shared(config(optimizer__ema=0.5)) != base
    assert {"version of jax", "code of rdrop_jax", "model.width"} <= base.keys()


def test_a_process_without_the_file_is_named(two_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "_SEEN_WITHIN", 0.2)
    (tmp_path / "there").touch()
    two_processes += [lambda count: np.int32(1), lambda count: np.int32(0)]
    with pytest.raises(InputError, match="found process 1 without a file"):
        agreement.check_visible(tmp_path, ["there"], "")
    with pytest.raises(InputError, match="found process 0 without a file"):
        agreement.check_visible(tmp_path, ["absent"], "")


def test_the_shared_file_is_removed(two_processes, tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "from_process_0", lambda decide: decide())
    two_processes += [lambda count: np.int32(0), lambda count: np.int32(1)]
    agreement.check_shared(tmp_path)
    with pytest.raises(InputError, match="on a file system that all 2 processes share"):
        agreement.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_process_must_see_the_checkpoint_to_resume(finished, monkeypatch):
    seen = []
    monkeypatch.setattr(checkpoint, "check_visible", lambda *args: seen.append(args[1]))
    reader = checkpoint.Checkpoints(finished[0], read_only=True)
    assert reader.pick("last") == 6
    assert reader.latest() == 6
    reader.close()
    assert seen == [["step_6/checksums.json"]] * 2


WATCHED = """
import ctypes, os, signal, sys, time
from rdrop_jax.training import preemption
seen = ctypes.c_int(0)
{before}
with {context}:
    print("ready", flush=True)
    time.sleep(60)
"""


def waiting(before, context):
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED.format(before=before, context=context)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def ends(process, *signals):
    """Exit code after the last signal; the ones before must not end the process."""
    try:
        for number in signals[:-1]:
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
        process.send_signal(signals[-1])
        return process.wait(5)
    finally:
        process.kill()
        process.communicate()


def test_a_second_signal_ends_where_jax_takes_the_first():
    """libc's own handler stands for that of JAX."""
    before = (
        "libc = ctypes.CDLL(None)\n"
        "handler = ctypes.CFUNCTYPE(None, ctypes.c_int)"
        "(lambda number: os.write(1, b'noted\\n') and None)\n"
        "libc.signal(signal.SIGTERM, handler)"
    )
    process = waiting(before, "preemption.shared(preemption.Stop())")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "noted\n"
    assert ends(process, signal.SIGTERM) == 128 + signal.SIGTERM


def test_a_hangup_stops_as_sigterm_does_unless_ignored():
    stoppable = "preemption.stoppable()"
    process = waiting("", stoppable)
    assert ends(process, signal.SIGHUP, signal.SIGHUP) == 128 + signal.SIGHUP
    ignored = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    process = waiting(ignored, stoppable)
    codes = ends(process, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGTERM)
    assert codes == 128 + signal.SIGTERM


def test_a_hangup_is_named():
    with preemption.stoppable() as stop:
        signal.raise_signal(signal.SIGHUP)
        for _ in range(100):
            if stop.signal:
                break
            time.sleep(0.01)
    assert stop.signal == "SIGHUP"


@pytest.mark.slow
def test_hosts_without_a_shared_disk_end_with_a_message(tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    each = [["--workdir", folder] for folder in folders]
    with Processes("train", *TINY, each=each) as processes:
        ended = processes.end()
    for code, _, err in ended:
        assert code == 2
        assert "on a file system that all 2 processes share" in err


@pytest.mark.slow
def test_processes_of_other_configs_end_with_a_message(tmp_path):
    each = [["--config.model.width=16"], ["--config.model.width=32"]]
    argv = [*TINY, "--workdir", tmp_path]
    with Processes("train", *argv, each=each) as processes:
        ended = processes.end()
    for code, _, err in ended:
        assert code == 2
        assert "model.width: process 0 16, process 1 32" in err


@pytest.mark.slow
def test_a_second_sigterm_ends_a_process_that_waits(tmp_path):
    argv = [*TINY, "--config.total_steps=100000", "--workdir", tmp_path]
    with Processes("train", *argv) as processes:
        processes.wait_for("step ")
        first, second = processes.processes
        second.send_signal(signal.SIGSTOP)
        first.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(1)
        first.terminate()
        assert first.wait(3) == 128 + signal.SIGTERM
