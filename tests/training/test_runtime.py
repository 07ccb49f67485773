"""Mesh, checkpoints, writers and disk."""

import errno
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from jax.sharding import PartitionSpec

from rdrop_jax import init_state
from rdrop_jax.cli import process
from rdrop_jax.core.metrics import Mean
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, disk
from rdrop_jax.training import distributed, log_lines, mesh, workdir, writers
from rdrop_jax.training.checkpoint import Checkpoints, Progress, missing_checkpoints
from rdrop_jax.training.state import root_key
from rdrop_jax.training.window import Window


def test_mesh_takes_what_is_left():
    assert dict(mesh.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(mesh.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_mesh_that_does_not_fit_is_named(shape):
    with pytest.raises(InputError, match="mesh: expected axes that multiply to 8"):
        mesh.make_mesh(*shape)


def test_rows_are_split_over_data_and_fsdp():
    grid = mesh.make_mesh(2, 2, 2)
    x, scalar = mesh.shard_batch(grid, [np.arange(8), np.float32(3)])
    assert scalar.sharding.is_fully_replicated
    assert {shard.data.shape for shard in x.addressable_shards} == {(2,)}
    np.testing.assert_array_equal(x, np.arange(8))
    with pytest.raises(InputError, match=r"rows_multiple .* multiple of the 4 devices"):
        mesh.shard_batch(grid, {"x": np.arange(6)})


def test_parameters_are_cut_by_rule_and_by_size():
    grid = mesh.make_mesh(2, 2, 2)
    tree = {
        "query": {"kernel": jnp.zeros((256, 512))},
        "norm": {"scale": jnp.zeros((256,))},
        "odd": {"kernel": jnp.zeros((257, 512))},
        "big": jnp.zeros((3, 2**16)),
    }
    rules = [(r"(query|odd)/kernel", PartitionSpec("tensor", None))]
    specs = jax.tree.map(lambda s: s.spec, mesh.state_shardings(grid, tree, rules))
    assert specs["query"]["kernel"] == PartitionSpec("tensor", "fsdp")
    assert specs["norm"]["scale"] == PartitionSpec(None)
    assert specs["odd"]["kernel"] == PartitionSpec(None, "fsdp")  # 257 does not divide
    assert specs["big"] == PartitionSpec(None, "fsdp")


TX = optax.adam(1e-2)


def make_state(ema=False):
    return init_state(toy.params(), TX, jax.random.key(7), ema=ema)


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_comes_back_exactly(tmp_path, ema):
    state = make_state(ema)
    progress = Progress(best_step=3, best_score=0.5, stale=1, seconds=2.5)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state, progress)
    checkpoints.wait()
    found, found_progress = checkpoints.restore(3, abstract(state))
    assert_equal(found, state)
    assert found_progress == progress
    params = checkpoints.restore_params(3, abstract(state).params, ema=ema)
    assert_equal(params, state.params)
    checkpoints.close()


def test_the_newest_and_the_first_best_are_kept(tmp_path):
    checkpoints, state, progress = (
        Checkpoints(tmp_path, keep=2),
        make_state(),
        Progress(),
    )
    for step, score in enumerate([0.1, 0.7, 0.7, None, 0.6, 0.2], 1):
        if score == 0.7 and progress.best_step < 0:
            progress = Progress(best_step=step, best_score=score)
        checkpoints.save(step, state, progress)
    checkpoints.wait()
    assert checkpoints.steps() == [2, 5, 6]
    assert checkpoints.pick("best") == 2
    assert checkpoints.pick("last") == 6
    assert checkpoints.pick("5") == 5
    with pytest.raises(InputError, match=r"one of \[2, 5, 6\], found '4'"):
        checkpoints.pick("4")
    checkpoints.close()


def test_restored_on_another_mesh(tmp_path):
    state = make_state()
    grid = mesh.make_mesh()
    placed = jax.device_put(state, mesh.state_shardings(grid, state))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, placed, Progress())
    checkpoints.wait()
    found, _ = checkpoints.restore(1, abstract(state))
    assert_equal(found, state)
    checkpoints.close()


def test_no_checkpoints_is_said(tmp_path):
    with pytest.raises(InputError, match="no checkpoints in"):
        Checkpoints(tmp_path, read_only=True)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match="contains no checkpoint yet"):
        checkpoints.pick("last")
    checkpoints.close()


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    out = writers.MetricsWriter(tmp_path, active=True)
    for step in (1, 2, 3):
        out.record(step, "train", {"ce": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kin')  # killed while writing
    out.resume(2)
    out.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_tensorboard_events_are_written(tmp_path):
    out = writers.MetricsWriter(tmp_path, ["tensorboard"], active=True)
    out.record(1, "train", {"ce": 1.0, "kl": float("nan")})
    out.close()
    assert list((tmp_path / "events").glob("events.*"))


def test_a_terminal_shows_full_lines_and_truncates_live_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    logger = logging.getLogger("rdrop_jax.training.loop")
    logger.info("a" * 300 + "\n" + "b" * 300)
    logger.info("c" * 300, extra={"live": True})
    logger.info("done")
    text = capsys.readouterr().out
    assert "a" * 300 + "\n" + "b" * 300 + "\n" in text
    assert 0 < text.count("c") < 300
    assert text.endswith("\033[Kdone\n")


def test_a_live_line_is_ended_at_exit(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    logger = logging.getLogger("rdrop_jax")
    others, logger.handlers = logger.handlers, []
    with process.console_messages():
        logger.info("step 1", extra={"live": True})
    logger.handlers = others
    assert capsys.readouterr().out.endswith("step 1\n")


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    out = writers.MetricsWriter(tmp_path, ["tensorboard"], active=False)
    out.record(1, "train", {"ce": 1.0})
    out.resume(0)
    out.close()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    logging.getLogger("rdrop_jax").info("hello")
    logging.getLogger("rdrop_jax").warning("a warning")
    assert capsys.readouterr() == ("", "a warning\n")


def test_the_library_prints_nothing_by_itself():
    """A Python caller attaches a handler, or none."""
    done = subprocess.run(
        [sys.executable, "-c", "import logging, rdrop_jax.train\n"
         "assert not logging.getLogger('rdrop_jax').handlers"],
        check=True,
    )  # fmt: skip
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path):
    out = writers.MetricsWriter(tmp_path, active=True)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space left to write in"):
        out.record(1, "train", {"ce": 1.0})
    (tmp_path / "x.json.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match="no space left to write in"):
        disk.write_json(tmp_path / "x.json", {})


def test_storage_errors_of_every_kind_are_explained(tmp_path):
    errors = [
        OSError(errno.ENOSPC, "full"),
        ValueError("RESOURCE_EXHAUSTED: writing"),
    ]
    for error in errors:
        with (
            pytest.raises(InputError, match="Free some space and start again"),
            disk.explained(tmp_path),
        ):
            raise error
    with pytest.raises(ValueError, match="else"), disk.explained(tmp_path):
        raise ValueError("something else")


def test_too_little_space_is_refused_before_the_first_step(tmp_path):
    disk.check_space(tmp_path, 1)
    with pytest.raises(
        InputError, match=r"MiB free for checkpoints, found [\d.]+ MiB in"
    ):
        disk.check_space(tmp_path, 2**60)


def test_a_resumed_run_needs_space_for_the_missing_checkpoints_alone(tmp_path):
    assert missing_checkpoints(tmp_path, 2, 100) == 4
    for step, before, left in (
        *((60, 4, 3), (80, 3, 2), (90, 2, 1)),
        *((95, 1, 1), (100, 1, 0)),
    ):
        folder = tmp_path / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        assert missing_checkpoints(tmp_path, 2, 100) == before  # it is incomplete
        (folder / checksums.NAME).touch()
        assert missing_checkpoints(tmp_path, 2, 100) == left
    assert missing_checkpoints(tmp_path, 2, 200) == 1


def test_all_bits_of_a_seed_count():
    for seed in (0, 5, 2**31 + 5, 2**32 - 1):
        assert root_key(seed) == jax.random.key(seed)
    seeds = [5, 2**32 + 5, 2**40 + 5, 2**63 - 1, -1]
    assert len({jax.random.key_data(root_key(x)).tobytes() for x in seeds}) == 5


def test_a_workdir_that_is_a_file_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    from rdrop_jax.config import base_config

    with pytest.raises(InputError, match="cannot write in"):
        workdir.initialize(base_config(), file)
    with pytest.raises(InputError, match="no run in"):
        workdir.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        workdir.read(tmp_path)


def test_parameter_table_folds_blocks():
    params = {f"block_{i}": {"kernel": jnp.zeros((2, 3))} for i in range(4)}
    table = log_lines.parameter_table(params | {"head": jnp.zeros(5)})
    assert "block_*/kernel" in table
    assert "x 4" in table
    assert "29 parameters" in table


def test_waiting_for_data_is_counted_once_the_device_is_done():
    window = Window(0, 0.0)
    window.compiled(0)
    window.idle(jnp.ones(()))
    time.sleep(0.05)
    window.busy()
    window.busy()  # the next batch was there in time
    window.add({"ce": Mean(jnp.float32(1.0), jnp.float32(1.0))})
    time.sleep(0.05)
    found = window.read(1)["data_wait"]
    assert 0.05 < found < 0.95
    assert window.read(2)["data_wait"] == 0.0
