"""A workdir with broken files, without space, or in use by another."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.limits import FULL, after_a_full_disk, file_size_limit
from helpers.programs import ROOT
from helpers.tiny import train

from rdrop_jax import config as config_lib
from rdrop_jax import evaluate, flags
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums, disk
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training import writers


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[]", "a JSON list"),
        (b'{"seed": 0}', "no task"),
        (None, "No such file"),
    ],
)
def test_a_broken_config_is_named(workdir, content, found):
    path = workdir / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    for program in (train, lambda w: evaluate.evaluate(w, "test", "best")):
        with pytest.raises(InputError) as error:
            program(workdir)
        assert f"--workdir: {path}: expected " in str(error.value)
        assert found in str(error.value)
    assert path.exists() == (content is not None)  # not replaced by a guess


def test_metrics_that_are_no_records_are_dropped_with_a_message(tmp_path, capsys):
    out = writers.MetricsWriter(tmp_path, active=True)
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "kind": "train"}\n'
    for junk, count in [
        (b"garbage\n", 1),
        (b"\xff\x00\xfe\n[1]\n", 2),
        (b'{"kind": "train"}\n\n', 2),
        (b'{"step": 1, "ki', 0),
    ]:
        path.write_bytes(good + junk)
        out.resume(1)
        assert path.read_bytes() == good
        assert (f"found {count} other lines" in capsys.readouterr().out) == (count > 0)
    path.unlink()
    out.resume(1)
    assert not path.exists()
    out.close()


def test_events_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "events").write_text("a file")
    with pytest.raises(InputError, match=r"--workdir: cannot write in .*events"):
        writers.MetricsWriter(tmp_path, ["tensorboard"], active=True)


def test_a_half_result_is_made_again(finished, workdir, capsys):
    path = workdir / "result.json"
    for content in (b'{"step": 6, "te', b"\xff\x00", b"[6]"):
        path.write_bytes(content)
        assert train(workdir)["test"] == finished[1]["test"]
        assert f"{path}: expected a JSON object, found " in capsys.readouterr().out
        assert json.loads(path.read_bytes())["test"] == finished[1]["test"]


@after_a_full_disk
def test_every_file_that_does_not_fit_is_explained(finished, tmp_path):
    checkpoint = shutil.copytree(
        finished[0] / "checkpoints" / "step_6", tmp_path / "step_6"
    )
    with file_size_limit(64):
        with pytest.raises(InputError, match=FULL):
            disk.write_json(tmp_path / "config.json", {"long": "x" * 100})
        with pytest.raises(InputError, match=FULL):
            checksums.write(checkpoint)
        out = writers.MetricsWriter(tmp_path, active=True)
        with pytest.raises(InputError, match=FULL):
            out.record(1, "train", {"x" * 100: 1.0})
        with pytest.raises(InputError, match=FULL):
            writers.MetricsWriter(tmp_path, ["tensorboard"], active=True).record(
                1, "train", {"x" * 100: 1.0}
            )
    assert not (tmp_path / "config.json").exists()
    assert not checksums.problem(checkpoint)  # the old checksums are still there


def test_a_second_training_is_refused(tmp_path):
    workdir = tmp_path / "run"
    with workdir_lib.locked(workdir):
        found = f"found pid {os.getpid()} on .* training there"
        with pytest.raises(InputError, match=found):
            train(workdir)
        assert [p.name for p in workdir.iterdir()] == ["lock"]
    with workdir_lib.locked(workdir):
        pass


def test_readers_are_not_refused(finished):
    with workdir_lib.locked(finished[0]):
        assert open_run(finished[0], "last").step == 6


def test_what_storage_threads_print_is_left_out():
    """They complain of a closed loop after a save that failed; the rest is shown."""
    program = (
        "import sys; from rdrop_jax.cli import process\n"
        "class Dies:\n"
        "    def __init__(self, text): self.text = text\n"
        "    def __del__(self): raise RuntimeError(self.text)\n"
        "def main(argv):\n"
        "    Dies('Event loop is closed'); Dies('a bug')\n"
        "process.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "a bug" in done.stderr
    assert "Event loop" not in done.stderr


def test_a_run_of_version_0_1_keeps_the_names_of_its_data(tmp_path, monkeypatch):
    preset = "configs/glue.py:rte_bert_base"
    names = {"data.name": "glue/rte", "init_from": "bert-base-cased"}
    names |= {"data.columns.text": "text", "data.columns.text_b": ""}
    workdir_lib.initialize(flags.load(preset, names), tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["version"]
    path.write_text(json.dumps(stored))
    monkeypatch.setattr(workdir_lib, "has_checkpoint", lambda workdir: True)
    found = workdir_lib.resumed(flags.load(preset, {}), tmp_path, ())
    assert names.items() <= config_lib.flatten(found).items()
    named = workdir_lib.resumed(flags.load(preset, {}), tmp_path, ("data.name",))
    assert named.data.name == "hf:nyu-mll/glue/rte"
