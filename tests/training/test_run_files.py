"""Files of a run that were edited, replaced or moved while the run goes on."""

import contextlib
import functools
import json
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest
from helpers import messages
from helpers.tiny import config, train

from rdrop_jax import evaluate, flags
from rdrop_jax.compare import comparison
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, disk
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training import writers
from rdrop_jax.training.checkpoint import Checkpoints, Progress

NESTED = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
BROKEN = {
    "list": b"[1]",
    "number": b"1",
    "text": b"no JSON",
    "utf16": '{"step": 6'.encode("utf-16"),
    "binary": b"\xff\xfe\x00\xd8",
    "nested": NESTED,
    "empty": b"",
}


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def break_file(path, kind):
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(BROKEN[kind])


KINDS = pytest.mark.parametrize("kind", [*BROKEN, "folder", "pipe", "device"])


@KINDS
def test_the_reader_of_json_names_the_file(tmp_path, kind):
    path = tmp_path / "x.json"
    break_file(path, kind)
    with pytest.raises(InputError, match=f"^{path}: expected a JSON object, found "):
        disk.read_json(path)


@KINDS
def test_a_broken_config_is_an_input_error(workdir, kind):
    break_file(workdir / "config.json", kind)
    with pytest.raises(InputError, match=r"config\.json: expected .*Restore"):
        evaluate.evaluate(workdir, "test", "best")


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("optimizer", [1], "no optimizer.b1"),
        ("batch_size", "64", "batch_size: '64' in place of int"),
        ("seed", None, "seed: None in place of int"),
        ("mesh", {"data": -1}, "no mesh.fsdp, mesh.tensor"),
        ("model.activation", {}, "model.activation: {} in place of a value"),
        ("extra", {"a.b": 1}, "a name with a dot, 'a.b'"),
        ("data.files", "a", "data.files: 'a' in place of a group"),
    ],
)
def test_an_edited_config_names_the_field(workdir, field, value, found):
    path = workdir / "config.json"
    stored = json.loads(path.read_text())
    *groups, leaf = field.split(".")
    functools.reduce(dict.__getitem__, groups, stored)[leaf] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=f"config.json: expected .*{found}"):
        workdir_lib.read(workdir)


@pytest.mark.parametrize(
    ("task", "field", "value", "absent", "found"),
    [
        ("vit", "model.variant", 5, (), "model.size: expected str, got 5"),
        ("glue", "data.held_out", "x", (), "data.validation: expected float, got 'x'"),
        ("glue", "data.held_out", "x", ("validation",), "data.validation: expected"),
    ],
)
def test_an_old_field_of_another_type_is_named(
    tmp_path, task, field, value, absent, found
):
    stored = json.loads(flags.load(f"configs/{task}.py", {}).to_json())
    group, old = field.split(".")
    stored[group][old] = value
    for new in absent:
        del stored[group][new]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match=f"config.json: {found}.*Restore"):
        workdir_lib.read(tmp_path)


@KINDS
def test_broken_data_checksums_are_written_again_or_named(workdir, kind):
    path = workdir / "data.json"
    sums = json.loads(path.read_bytes())
    break_file(path, kind)
    if kind == "folder":
        with pytest.raises(InputError, match="--workdir: cannot write in"):
            workdir_lib.record_data(sums, workdir)
        return
    workdir_lib.record_data(sums, workdir)
    assert json.loads(path.read_bytes()) == sums


@KINDS
def test_a_broken_record_of_weights_names_the_source(workdir, kind):
    break_file(workdir / "init.json", kind)
    found = workdir_lib.recorded_init(config(init_from="weights"), workdir)
    assert found == {"from": "weights"}


@KINDS
def test_broken_metrics_are_dropped_or_named(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    break_file(path, kind)
    if kind in ("folder", "pipe", "device"):
        with pytest.raises(InputError, match=r"cannot write in .*metrics\.jsonl"):
            writers.MetricsWriter(tmp_path, active=True)
        return
    out = writers.MetricsWriter(tmp_path, active=True)
    out.resume(1)
    out.record(1, "train", {"ce": 1.0})
    assert [r["step"] for r in disk.read_records(path)] == [1]


@pytest.mark.parametrize("kind", ["nested", "utf16", "list"])
def test_a_broken_result_is_made_again(finished, workdir, kind):
    break_file(workdir / "result.json", kind)
    assert train(workdir)["test"] == finished[1]["test"]


@KINDS
def test_a_broken_checksum_file_is_a_damaged_checkpoint(workdir, kind):
    folder = workdir / "checkpoints" / "step_6"
    break_file(folder / checksums.NAME, kind)
    assert "expected a JSON object" in checksums.problem(folder)


@KINDS
def test_a_broken_comparison_is_an_input_error(tmp_path, kind):
    break_file(tmp_path / "comparison.json", kind)
    with pytest.raises(InputError, match=r"comparison\.json: expected"):
        comparison.read_comparison(tmp_path / "comparison.json")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_a_lock_that_is_no_file_is_named(tmp_path, kind):
    break_file(tmp_path / "lock", kind)
    held = workdir_lib.locked(tmp_path)
    with pytest.raises(InputError, match=r"--workdir: cannot write in .*lock"):
        held.__enter__()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_workdir_that_cannot_be_made_is_named():
    held = workdir_lib.locked(Path("/proc/rdrop_jax"))
    with pytest.raises(InputError, match="cannot write in /proc/rdrop_jax"):
        held.__enter__()


def test_step_folders_have_ascii_digits(workdir):
    folder = workdir / "checkpoints"
    for name in ("step_9٩", "step_²", "step_٣", "step_" + "9" * 5000):
        if len(name) < 256:
            (folder / name).mkdir()
    with_strays = checksums.step_folders(folder)
    assert list(with_strays) == [3, 4, 6]
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        assert checkpoints.pick("last") == 6
        for number in ("²", "٦", "9" * 5000):
            with pytest.raises(InputError, match="--checkpoint: expected"):
                checkpoints.pick(number)
            with pytest.raises(InputError, match="--checkpoint: expected"):
                checkpoints.newest(number)


STATE = {"w": jnp.ones(4)}


@pytest.fixture
def one_save(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with contextlib.closing(Checkpoints(run)) as checkpoints:
        checkpoints.save(1, STATE, Progress())
        checkpoints.wait()
        yield run, checkpoints


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda f: f.rename(f"{f}_moved")])
def test_checkpoints_that_vanish_are_noticed_at_the_next_save(one_save, lose):
    run, checkpoints = one_save
    lose(run / "checkpoints")
    with pytest.raises(InputError, match=r"Step 2 is saved in a new folder there"):
        checkpoints.save(2, STATE, Progress())
    assert list(checksums.step_folders(run / "checkpoints")) == [2]
    assert not checksums.problem(run / "checkpoints" / "step_2")


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda f: f.rename(f"{f}_moved")])
def test_a_workdir_that_vanishes_is_noticed_at_the_next_save(one_save, lose):
    run, checkpoints = one_save
    lose(run)
    with pytest.raises(InputError, match="removed, renamed or unmounted"):
        checkpoints.save(2, STATE, Progress())
    assert not run.exists()  # nothing is made in its place


def test_another_folder_in_place_of_the_checkpoints_is_named(one_save):
    run, checkpoints = one_save
    (run / "checkpoints").rename(run / "moved")
    (run / "checkpoints").mkdir()  # as after a mount
    with pytest.raises(InputError, match="removed, renamed or unmounted"):
        checkpoints.save(2, STATE, Progress())


def test_a_checkpoint_that_vanishes_is_reported_at_the_next_save(tmp_path):
    with (
        messages.collected() as said,
        contextlib.closing(Checkpoints(tmp_path)) as checkpoints,
    ):
        checkpoints.save(1, STATE, Progress())
        checkpoints.wait()
        shutil.rmtree(tmp_path / "checkpoints" / "step_1")
        checkpoints.save(2, STATE, Progress())
    assert said == ["checkpoint step 1: removed during the run"]
    assert list(checksums.step_folders(tmp_path / "checkpoints")) == [2]
