"""Runs that are killed, stopped by a signal, or out of disk, as processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.programs import ROOT, run, start, train_argv

from rdrop_jax import flags
from rdrop_jax import train as train_program
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import Stopped
from rdrop_jax.files import checksums
from rdrop_jax.training import loop, window
from rdrop_jax.training import workdir as workdir_lib


def assert_same_run(ours, theirs):
    a, b = open_run(ours, "last"), open_run(theirs, "last")
    assert a.step == b.step
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    results = [json.loads((w / "result.json").read_text()) for w in (ours, theirs)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["checkpoint_step"] == results[1]["checkpoint_step"]


def saving(checkpoints):
    return any(checkpoints.glob("step_*.orbax-checkpoint-tmp*"))


def unsealed(checkpoints):
    folders = checksums.step_folders(checkpoints).values()
    return any(not checksums.is_complete(folder) for folder in folders)


@pytest.mark.parametrize(
    ("kills", "steps"), [(1, 60), pytest.param(30, 600, marks=pytest.mark.slow)]
)
def test_killed_at_any_moment_ends_with_the_same_bits(kills, steps, trained, tmp_path):
    longer = f"--config.total_steps={steps}"
    reference, workdir = trained[0], tmp_path / "killed"
    if steps != 60:
        reference = tmp_path / "reference"
        code, _, err = run("train", *train_argv(reference, longer))
        assert code == 0, err
    resumed, caught = 0, {saving: 0, unsealed: 0}
    for kill in range(kills):
        process = start("train", *train_argv(workdir, longer), start_new_session=True)
        # 6 lines leave a checkpoint: step 25 comes after step 10 was sealed.
        enough = random.randrange(kills // 5 + 1) if kill else 6
        lines = -1  # counted from the compilation on: leftovers are cleared by then
        for line in process.stdout:
            resumed += line.startswith("resuming from step")
            lines += line.startswith(("compiled", "step "))
            if lines >= enough:
                break
        moment = [None, saving, unsealed][kill % 3]
        if moment is None:
            time.sleep(random.random() * 0.1)
        else:
            while process.poll() is None and not moment(workdir / "checkpoints"):
                time.sleep(0.0005)
        assert process.poll() is None, "the run ended before it was killed enough"
        os.killpg(process.pid, signal.SIGKILL)
        err = process.communicate()[1]
        assert "Traceback" not in err, err
        for part in caught:
            caught[part] += part(workdir / "checkpoints")
    code, _, err = run("train", *train_argv(workdir, longer))
    assert code == 0, err
    assert resumed >= kills // 2
    assert caught[saving] >= (kills + 1) // 3
    assert caught[unsealed] or kills < 30
    assert_same_run(workdir, reference)


@pytest.mark.slow  # the next tests send both within this process
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_saves_and_ends_well(name, trained, tmp_path):
    process = start("train", *train_argv(tmp_path))
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    process.send_signal(getattr(signal, name))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err == ""
    last = out.splitlines()[-1]
    step = int(last.split("at step ")[1].split(":")[0])
    assert last == f"stopped by {name} at step {step}: saved. Start again to resume"
    assert 10 <= step < 60
    assert not (tmp_path / "result.json").exists()
    code, out, err = run("train", *train_argv(tmp_path))
    assert code == 0, err
    assert f"resuming from step {step}" in out
    assert_same_run(tmp_path, trained[0])


OPTIONS = {
    "total_steps": "4",
    "eval.every": "2",
    "checkpoint.every": "0",
    "log.every": "0",
    "log.trackers": "()",
    "model.layers": "1",
    "model.width": "16",
    "model.heads": "2",
    "model.mlp_width": "16",
    "model.patch_size": "4",
}


def train(workdir):
    return train_program.train(flags.load("configs/vit.py", OPTIONS), workdir)


def signalled(monkeypatch, name, at_call=1, module=loop, number=signal.SIGTERM):
    """Sends a signal to this process in a call of a function of the loop."""
    real, calls = getattr(module, name), []

    def wrapped(*args):
        calls.append(args)
        if len(calls) == at_call:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(module, name, wrapped)


@pytest.mark.parametrize(
    ("function", "said", "saved"),
    [
        pytest.param("abstract_state", "before step 1", [], marks=pytest.mark.slow),
        ("eval_params", "at step 3: saved", [2, 3]),  # while it validates step 2
        pytest.param("check_passes", "before step 1", [], marks=pytest.mark.slow),
        pytest.param("make_step", "before step 1", [], marks=pytest.mark.slow),
        pytest.param("with_score", "at step 3: saved", [2, 3], marks=pytest.mark.slow),
    ],
)
def test_a_signal_at_any_stage(monkeypatch, tmp_path, function, said, saved):
    number = signal.SIGINT if function == "eval_params" else signal.SIGTERM
    before = signal.getsignal(number)
    signalled(monkeypatch, function, number=number)
    with pytest.raises(Stopped) as stopped:
        train(tmp_path)
    wanted = f"stopped by {number.name} {said}. Start again to resume"
    assert str(stopped.value) == wanted
    found = checksums.step_folders(tmp_path / "checkpoints")
    assert list(found) == saved
    assert not any(map(checksums.problem, found.values()))
    assert not (tmp_path / "result.json").exists()
    assert signal.getsignal(number) is before
    assert train(tmp_path)["step"] == 4


def test_a_signal_after_the_last_step_costs_nothing(monkeypatch, tmp_path):
    signalled(monkeypatch, "stored_result", module=workdir_lib)
    assert train(tmp_path)["step"] == 4


def test_a_bad_state_is_not_saved_on_a_signal(monkeypatch, tmp_path):
    monkeypatch.setitem(OPTIONS, "optimizer.lr", "1e38")
    monkeypatch.setitem(OPTIONS, "optimizer.clip", "0")
    monkeypatch.setitem(OPTIONS, "optimizer.warmup", "0")
    monkeypatch.setitem(OPTIONS, "eval.every", "0")
    signalled(monkeypatch, "merge", module=window)  # step 2
    with pytest.raises(loop.TrainingError, match="expected a finite loss"):
        train(tmp_path)
    assert not checksums.step_folders(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    "busy", ["time.sleep(60)", "pbkdf2_hmac('md5', b'', b'', 2**30)"]
)
def test_a_second_signal_ends_at_once(busy):
    """Also where Python runs no bytecode, as during a compilation."""
    program = (
        "import time; from hashlib import pbkdf2_hmac;"
        "from rdrop_jax.training.preemption import stoppable\n"
        f"with stoppable():\n    print('ready', flush=True)\n    {busy}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.terminate()
    assert process.wait(5) == 128 + signal.SIGTERM
    process.stdout.close()


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path):
    argv = [*train_argv(tmp_path), "--config.log.trackers=()"]
    assert run("train", *argv, "--config.total_steps=20")[0] == 0
    limited = (
        "import resource, runpy;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000));"
        "runpy.run_module('rdrop_jax.train', run_name='__main__')"
    )
    # Without the compilation cache: what the limit cuts off there would stay.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, argv)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "resuming from step 20" in done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(
        f"error: --workdir: no space left to write in {tmp_path}/checkpoints"
    )
    code, out, err = run("train", *argv)
    assert code == 0, err
    assert "resuming from step 20" in out
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 60


def test_a_killed_holder_lets_go_of_the_workdir(tmp_path):
    program = (
        "import sys, time; from pathlib import Path;"
        "from rdrop_jax.training.workdir import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('ready', flush=True)\n    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    code, _, err = run("train", *train_argv(tmp_path))
    assert code == 2
    assert f"found pid {process.pid} on " in err
    assert err.count("\n") == 1
    process.kill()
    process.communicate()
    with workdir_lib.locked(tmp_path):
        pass
