"""Several real processes over loopback: one run, whatever happens to one of them."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.processes import ROOT, TINY, Processes, command, free_port

from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.training import distributed
from rdrop_jax.training.mesh import make_mesh, shard_batch


def run(name, *argv, **options):
    with Processes(name, *argv, **options) as processes:
        return processes.end()


def train(workdir, *argv, **options):
    ended = run("train", *TINY, "--workdir", workdir, *argv, **options)
    assert all(code == 0 for code, _, _ in ended), ended
    return ended


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def records(workdir, kind="train"):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def params(workdir):
    return open_run(workdir, "last").params


def assert_close(a, b, tolerance=1e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def losses(workdir):
    return [[r["step"], r["loss"], r["ce"], r["kl"]] for r in records(workdir)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    train(workdir, count=1, devices=2)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two")
    return workdir, train(workdir)


def test_two_processes_equal_one(one, two):
    workdir, _ = two
    assert_close(losses(workdir), losses(one))
    assert_close(params(workdir), params(one))
    theirs, ours = result(one), result(workdir)
    assert ours["step"] == theirs["step"] == 40
    assert ours["checkpoint_step"] == theirs["checkpoint_step"]
    for split, examples in (("validation", 180), ("test", 360)):
        assert ours[split]["examples"] == examples
        assert ours[split]["accuracy"] == theirs[split]["accuracy"]
        assert ours[split]["loss"] == pytest.approx(theirs[split]["loss"], rel=1e-6)


def test_one_process_writes(two):
    workdir, ((_, out, _), (_, other, _)) = two
    assert "step 40  validation" in out
    assert "rdrop.alpha = 1.0" in out
    assert other == ""
    assert [r["step"] for r in records(workdir)] == list(range(5, 41, 5))
    assert [r["step"] for r in records(workdir, "validation")] == [20, 40]
    assert len(list((workdir / "events").iterdir())) == 1
    assert (workdir / "config.json").is_file()


@pytest.mark.slow
def test_evaluation_in_a_detected_cluster_repeats_the_result(two):
    """The variables are those of Slurm."""

    def slurm(i, count, address):
        host, port = address.split(":")
        return {
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": host,
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
            "JAX_COORDINATOR_PORT": port,
        }

    (code, out, err), (other, nothing, _) = run(
        "evaluate", "--workdir", two[0], clusters=slurm
    )
    assert (code, other, nothing) == (0, 0, ""), err
    scores = json.loads(out)
    assert scores.pop("step") == result(two[0])["checkpoint_step"]
    assert scores == result(two[0])["test"]


@pytest.mark.slow
def test_killed_processes_end_all_and_start_again(two, tmp_path):
    """First one that follows dies, then the one that leads."""
    argv = ["train", *TINY, "--workdir", tmp_path]
    for victim, words in ((1, "step 10/"), (0, "step 25/")):
        with Processes(*argv) as running:
            running.wait_for(words)
            os.kill(running.processes[victim].pid, signal.SIGKILL)
            killed = time.monotonic()
            code, _, err = running.end()[1 - victim]
            assert time.monotonic() - killed < 60
            assert code != 0
            assert "another task died" in err
        assert not (tmp_path / "result.json").exists()
    out = train(tmp_path)[0][1]
    assert "resuming from step" in out
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path), params(two[0]))
    assert result(tmp_path)["test"] == result(two[0])["test"]
    assert losses(tmp_path) == losses(two[0])


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step(two, tmp_path):
    """And the checkpoint that is damaged then is passed over by all."""
    argv = ["train", *TINY, "--workdir", tmp_path]
    with Processes(*argv) as running:
        running.wait_for("step 10/")
        running.processes[1].send_signal(signal.SIGTERM)
        (code, out, err), (other, _, other_err) = running.end()
    assert (code, other) == (0, 0), (err, other_err)
    assert "stopped by SIGTERM at step" in out
    assert not (tmp_path / "result.json").exists()
    newest = max(tmp_path.glob("checkpoints/step_*"), key=lambda p: int(p.name[5:]))
    (newest / "checksums.json").unlink()
    (_, _, err), _ = train(tmp_path)
    assert (
        f"{newest.name.replace('_', ' ')}: expected checksums.json, found none" in err
    )
    jax.tree.map(np.testing.assert_array_equal, params(tmp_path), params(two[0]))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_silent_process_ends_the_other(tmp_path, victim):
    """Stopped, not dead: its connections stay open and only heartbeats tell."""
    with Processes("train", *TINY, "--workdir", tmp_path) as running:
        running.wait_for("step 10/")
        running.processes[victim].send_signal(signal.SIGSTOP)
        _, err = running.processes[1 - victim].communicate(timeout=45)
        assert running.processes[1 - victim].returncode != 0
        assert "another task died" in err


@pytest.mark.parametrize(
    ("first", "then"),
    [((2, 1), (1, 2)), ((1, 1), (2, 1))],
)
@pytest.mark.slow  # one process also reads the checkpoint of two just above
def test_the_number_of_processes_may_change(one, tmp_path, first, then):
    """To one process with two devices, or from one with a single device to two."""
    for total, (count, devices) in ((20, first), (40, then)):
        length = f"--config.total_steps={total}"
        ended = train(tmp_path, length, count=count, devices=devices)
    assert "resuming from step 20" in ended[0][1]
    assert_close(losses(tmp_path), losses(one), 1e-5)
    assert_close(params(tmp_path), params(one), 1e-5)


@pytest.mark.slow
def test_parameters_cut_over_processes(tmp_path):
    """Both processes save their own part of a matrix, and one reads all of it."""
    wide = ["--config.model.width=256", "--config.model.mlp_width=256"]
    wide += ["--config.total_steps=6", "--config.eval.every=6"]
    mesh = ["--config.mesh.data=1", "--config.mesh.fsdp=2"]
    train(tmp_path / "cut", *wide, *mesh)
    train(tmp_path / "whole", *wide, count=1, devices=2)
    (last,) = (tmp_path / "cut").glob("checkpoints/step_6/state")
    assert {p.name for p in last.glob("ocdbt.process_*")} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    (tmp_path / "cut" / "config.json").write_text(
        (tmp_path / "whole" / "config.json").read_text()
    )
    assert_close(params(tmp_path / "cut"), params(tmp_path / "whole"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_named_everywhere(tmp_path):
    bad = ["--config.optimizer.lr=1e38", "--config.optimizer.clip=0"]
    for code, _, err in run("train", *TINY, "--workdir", tmp_path / "bad", *bad):
        assert code == 1
        assert "error: step 0: expected a finite loss" in err


def test_a_mesh_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="mesh: expected every process to have a sep"):
        shard_batch(make_mesh(1, 1, 8), {"label": np.zeros(8)})


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_is_named_everywhere(tmp_path):
    whole = ["--config.mesh.data=1", "--config.mesh.tensor=2"]
    for code, _, err in run("train", *TINY, "--workdir", tmp_path / "cut", *whole):
        assert code == 2
        assert "error: mesh: expected every process to have a separate part" in err


@pytest.mark.slow
def test_what_fails_on_one_process_ends_the_other(tmp_path):
    """Only process 0 writes records: the other waits for its part of the next sum."""
    (tmp_path / "file").write_text("")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "file" / "metrics.jsonl")
    with Processes("train", *TINY, "--workdir", tmp_path) as running:
        running.wait_for("compiled in")
        failed = time.monotonic()
        (code, _, err), (other, _, _) = running.end()
    assert time.monotonic() - failed < 60
    assert code != 0
    assert "error: --workdir: cannot write in" in err
    assert other != 0


@pytest.mark.parametrize("process_id", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_processes_that_do_not_come_are_named(tmp_path, process_id):
    address = f"127.0.0.1:{free_port()}"
    argv = [*TINY, "--workdir", tmp_path, "--coordinator", address, "--num_processes=2"]
    done = subprocess.run(
        command("train", *argv, "--start_timeout=3", f"--process_id={process_id}"),
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert f"expected 2 processes at {address} within 3 s, found fewer" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_started_cluster_is_left_alone():
    program = (
        "import sys, jax; from rdrop_jax.training import distributed as d;"
        "jax.distributed.initialize(sys.argv[1], 1, 0);"
        "assert d.start(d.Cluster('nowhere:1', 2, 1, 1, 10)) == 0"
    )
    argv = [sys.executable, "-c", program, f"127.0.0.1:{free_port()}"]
    subprocess.run(argv, cwd=ROOT, check=True, timeout=60)


def test_no_cluster_to_detect_is_said(tmp_path):
    argv = ["--workdir", tmp_path, "--distributed"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(
        command("train", *TINY, *argv),
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed: expected a cluster that JAX")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--num_processes=2"], "expected all three, found only --num_processes"),
        (
            ["--coordinator=a:1", "--process_id=0"],
            "expected all three, found only --coordinator, --process_id",
        ),
        (["a:1", "2", "2"], "--process_id: expected from 0 to 1, found 2"),
        (["a:1", "2", "-1"], "--process_id: expected from 0 to 1, found -1"),
        (["a:1", "0", "0"], "--num_processes: expected from 1 to 1000000, found 0"),
        (["a", "2", "0"], "--coordinator: expected HOST:PORT, found 'a'"),
        (["a:0", "2", "0"], "--coordinator: expected HOST:PORT, found 'a:0'"),
        (["a:65536", "2", "0"], "--coordinator: expected HOST:PORT, found"),
        (["::1:80", "2", "0"], "--coordinator: expected HOST:PORT, found '::1:80'"),
        (["--distributed", "--start_timeout=0"], "--start_timeout: expected from 1"),
        (["--heartbeat_timeout=0"], "--heartbeat_timeout: expected from 1"),
    ],
)
def test_bad_flags_are_named(argv, message):
    with pytest.raises(InputError) as error:
        parsed(argv)
    assert message in str(error.value)


def test_good_flags_are_read():
    assert parsed([]) is None
    assert parsed(["--distributed"]).coordinator is None
    cluster = parsed(["[::1]:80", "2", "1"])
    assert (cluster.coordinator, cluster.num_processes, cluster.process_id) == (
        "[::1]:80",
        2,
        1,
    )


def parsed(argv):
    if len(argv) == 3:
        names = ("--coordinator", "--num_processes", "--process_id")
        argv = [f"{name}={value}" for name, value in zip(names, argv, strict=True)]
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    return distributed.from_flags(parser.parse_args(argv))
