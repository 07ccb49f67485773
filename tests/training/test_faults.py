"""Checkpoints that are damaged, unfinished, gone, or do not fit."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from helpers import messages, toy
from helpers.limits import FULL, after_a_full_disk, file_size_limit
from helpers.tiny import train

from rdrop_jax import evaluate, init_state
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.training.checkpoint import Checkpoints, Progress


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def folder(workdir, step):
    return workdir / "checkpoints" / f"step_{step}"


def largest(step_folder):
    files = [
        p for p in step_folder.rglob("*") if p.is_file() and p.name != checksums.NAME
    ]
    return max(files, key=lambda path: path.stat().st_size)


def truncate(step_folder):
    path = largest(step_folder)
    os.truncate(path, path.stat().st_size // 2)


def flip(step_folder):
    path = largest(step_folder / "state" / "ocdbt.process_0" / "d")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_file(step_folder):
    largest(step_folder).unlink()


def lose_seal(step_folder):
    (step_folder / checksums.NAME).unlink()


def break_seal(step_folder):
    (step_folder / checksums.NAME).write_bytes(b"\xff\x00")


def empty_seal(step_folder):
    (step_folder / checksums.NAME).write_text("{}")


def break_metadata(step_folder):
    (step_folder / "_CHECKPOINT_METADATA").write_bytes(b"\xff{")


def lose_all(step_folder):
    shutil.rmtree(step_folder)
    step_folder.mkdir()


DAMAGE = {
    truncate: r"expected \d+ bytes, found \d+",
    flip: r"expected sha256 \w{12}, found \w{12}",
    lose_file: r"expected a readable file, found No such file",
    lose_seal: r"expected checksums.json, found none: it was not finished",
    break_seal: r"checksums.json: expected a JSON object",
    empty_seal: r"checksums.json: expected files in step_3, found none",
    break_metadata: r"_CHECKPOINT_METADATA: expected \d+ bytes, found 2",
    lose_all: r"expected checksums.json, found none",
}
damages = pytest.mark.parametrize(
    ("damage", "reason"), DAMAGE.items(), ids=[d.__name__ for d in DAMAGE]
)


def make_state(seed):
    return init_state(toy.params(), optax.adam(1e-2), jax.random.key(seed))


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@contextlib.contextmanager
def opened(workdir, **options):
    with (
        messages.collected() as said,
        contextlib.closing(Checkpoints(workdir, **options)) as checkpoints,
    ):
        yield checkpoints, said


@pytest.fixture(scope="module")
def three_saved(tmp_path_factory):
    """Steps 1 (the best), 2 and 3."""
    workdir = tmp_path_factory.mktemp("three")
    with opened(workdir) as (checkpoints, _):
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), Progress(best_step=1))
    return workdir


@pytest.fixture
def three(three_saved, tmp_path):
    return Path(shutil.copytree(three_saved, tmp_path / "three"))


@damages
def test_a_damaged_newest_checkpoint_is_passed_over(three, damage, reason):
    damage(folder(three, 3))
    with opened(three, read_only=True) as (checkpoints, said):
        assert checkpoints.pick("last") == 2
        assert checkpoints.pick("best") == 1
        with pytest.raises(InputError, match=f"step 3 is corrupt: .*{reason}"):
            checkpoints.pick("3")
    assert folder(three, 3).is_dir()  # readers move nothing
    assert said[0].endswith("; using step 2")
    with opened(three) as (checkpoints, said):
        assert checkpoints.latest() == 2
        (line, moved) = said
        assert line.startswith("checkpoint step 3: ")
        assert line.endswith("; using step 2")
        assert moved == "checkpoint step 3: moved to damaged_step_3"
        # The rerun saves the same step again.
        state, progress = checkpoints.restore(2, abstract(make_state(0)))
        assert int(jax.random.key_data(state.key)[-1]) == 2
        checkpoints.save(3, make_state(3), progress)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]
        assert checkpoints.pick("last") == 3
    assert (three / "checkpoints" / "damaged_step_3").is_dir()


def test_a_damaged_best_falls_back_to_the_newest(three):
    flip(folder(three, 1))
    with opened(three, read_only=True) as (checkpoints, said):
        assert checkpoints.pick("best") == 3
    assert len(said) == 1
    assert said[0].startswith("checkpoint step 1: ")
    assert said[0].endswith("using step 3")
    shutil.rmtree(folder(three, 1))
    with opened(three, read_only=True) as (checkpoints, _):
        assert checkpoints.pick("best") == 3


def test_nothing_is_deleted_where_all_are_damaged(three):
    for step in (1, 2, 3):
        truncate(folder(three, step))
    before = sorted(three.rglob("*"))
    with opened(three) as (checkpoints, _):
        for look in (
            checkpoints.latest,
            lambda: checkpoints.pick("last"),
        ):
            with pytest.raises(
                InputError, match="no valid checkpoint, all are corrupt"
            ) as error:
                look()
            assert "step 1: " in str(error.value)
    assert sorted(three.rglob("*")) == before


def test_a_first_save_that_was_cut_off_is_begun_again(three):
    for step in (1, 2):
        shutil.rmtree(folder(three, step))
    lose_seal(folder(three, 3))
    with opened(three) as (checkpoints, said):
        assert checkpoints.latest() is None
    assert said == ["checkpoint step 3: moved to damaged_step_3"]


def test_two_that_were_never_finished_are_no_crash(three):
    shutil.rmtree(folder(three, 1))
    for step in (2, 3):
        lose_seal(folder(three, step))
    with (
        opened(three) as (checkpoints, _),
        pytest.raises(InputError, match="no valid checkpoint, all are corrupt"),
    ):
        checkpoints.latest()


def test_an_unsealed_save_costs_no_sealed_one(three, monkeypatch):
    """Killed after orbax has committed and pruned, before the checksums are there."""
    monkeypatch.setattr(checksums, "write", lambda folder: None)
    with opened(three) as (checkpoints, _):
        _, progress = checkpoints.restore(3, abstract(make_state(0)))
        checkpoints.save(4, make_state(4), Progress(best_step=4))
    assert progress.best_step == 1
    with opened(three) as (checkpoints, _):
        assert checkpoints.steps() == [1, 3]
        assert checkpoints.latest() == 3
        assert checkpoints.pick("best") == 1  # the one that step 3 knew


def test_stray_files_are_no_checkpoints(three):
    checkpoints = three / "checkpoints"
    (checkpoints / "step_x").mkdir()
    (checkpoints / "step_007").mkdir()
    (checkpoints / ".DS_Store").write_bytes(b"\x00\x01")
    (checkpoints / "step_9").write_text("a file")
    (checkpoints / "step_5.orbax-checkpoint-tmp").mkdir()
    with opened(three, read_only=True) as (reader, said):
        assert reader.pick("last") == 3
    with opened(three) as (writer, said):
        assert writer.latest() == 3
        writer.save(4, make_state(4), Progress(best_step=1))
        writer.wait()
        assert writer.steps() == [1, 3, 4]
    assert said == []
    assert (checkpoints / "step_9").read_text() == "a file"


def test_a_checkpoint_that_vanishes_while_it_is_read_is_passed_over(three):
    tried = []
    with opened(three, read_only=True) as (checkpoints, said):

        def load(step):
            tried.append(step)
            if step == 3:  # a training prunes it now
                shutil.rmtree(folder(three, 3))
            return checkpoints.restore(step, abstract(make_state(0)))[0]

        step, state = checkpoints.read("last", load)
        with pytest.raises(ValueError, match="of ours"):
            checkpoints.read(
                "last", lambda step: (_ for _ in ()).throw(ValueError("of ours"))
            )
    assert step == 2
    assert tried == [3, 2]
    assert int(jax.random.key_data(state.key)[-1]) == 2
    assert said == []


@pytest.mark.parametrize(
    "damage",
    [flip, pytest.param(lose_seal, marks=pytest.mark.slow)],
    ids=lambda d: d.__name__,
)
def test_training_goes_on_from_the_one_before(finished, workdir, capsys, damage):
    reference, result = finished
    (workdir / "result.json").unlink()
    damage(folder(workdir, 6))
    assert train(workdir)["test"] == result["test"]
    captured = capsys.readouterr()
    assert "checkpoint step 6: " in captured.err
    assert "; using step 4" in captured.err
    assert "resuming from step 4" in captured.out
    ours, theirs = (open_run(w, "last") for w in (workdir, reference))
    assert ours.step == theirs.step == 6
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    records = [
        [(r["step"], r["kind"]) for r in map(json.loads, text.splitlines())]
        for text in ((w / "metrics.jsonl").read_text() for w in (workdir, reference))
    ]
    assert records[0] == records[1]


def test_evaluation_says_which_checkpoint_it_took(finished, workdir, capsys):
    reference = evaluate.evaluate(finished[0], "test", "4")
    flip(folder(workdir, 6))
    assert evaluate.evaluate(workdir, "test", "last") == reference
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "; using step 4" in captured.err
    with pytest.raises(InputError, match=r"step 6 is corrupt: .*expected sha256"):
        evaluate.evaluate(workdir, "test", "6")


@pytest.mark.slow
def test_a_best_that_is_lost_at_the_end_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rdrop_jax.training.loop.direction", lambda name: "max")
    worst = {"eval__metric": "loss"}
    assert train(tmp_path, **worst)["checkpoint_step"] == 3
    flip(folder(tmp_path, 3))
    (tmp_path / "result.json").unlink()
    result = train(tmp_path, **worst)
    assert result["checkpoint_step"] == 6
    scores = evaluate.evaluate(tmp_path, "test", "6")
    assert scores == {"step": 6, **result["test"]}
    assert "checkpoint step 3: " in capsys.readouterr().err


@after_a_full_disk
def test_a_checkpoint_that_does_not_fit_leaves_the_others(three):
    def save_4():
        with opened(three) as (checkpoints, _), file_size_limit(200):
            checkpoints.save(4, make_state(4), Progress(best_step=4))
            checkpoints.wait()

    with pytest.raises(InputError, match=FULL):
        save_4()
    with opened(three) as (checkpoints, said):
        assert checkpoints.latest() == 3
        checkpoints.save(4, make_state(4), Progress(best_step=4))
        checkpoints.wait()
        assert checkpoints.pick("last") == 4
    assert said == []
