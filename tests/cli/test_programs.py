"""The programs as a user starts them."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import messages
from helpers.programs import run

from rdrop_jax.cli import evaluate, flags
from rdrop_jax.cli.predict import load, main, refuse_input
from rdrop_jax.cli.run import open_run, open_runs
from rdrop_jax.data.sources import digits
from rdrop_jax.errors import InputError


def test_a_run_shows_what_it_does(trained):
    workdir, out, err = trained
    for words in (
        "rdrop.alpha = 1.0",
        "block_*/attention/query/kernel",
        "parameters",
        "compiled in",
        "step 20  validation",
        "ETA 0:",
        "test  accuracy",
        f"result in {workdir}/result.json",
    ):
        assert words in out, words
    assert err == ""
    assert list((workdir / "events").glob("events.*"))


@pytest.mark.parametrize(
    ("config", "path", "message"),
    [
        ("vit.py", "x.csv", "--input: expected a run of .* with data.name=digits"),
        ("vit.py:folder", "x.csv", "Set --config.data.dir to a folder with a test spl"),
        ("glue.py", "x.csv", "--input: expected a run of .* with data.name=docstrings"),
        ("glue.py:files", "gone.csv", "--input: expected a file, found none at gone"),
        ("glue.py:files", __file__, "--input: .*expected one of .csv, .* found '.py'"),
        ("nmt.py:files", "", "--input: expected the name of a file"),
    ],
)
def test_evaluate_refuses_an_input(config, path, message):
    fields = {"data.files.train": "t.tsv"} if "files" in config else {}
    config = flags.load(f"configs/{config}", fields)
    with pytest.raises(InputError, match=message):
        evaluate.with_input(config, path)


def test_evaluate_repeats_the_result(trained):
    workdir = trained[0]
    code, out, _ = run("evaluate", "--workdir", workdir)
    result = json.loads((workdir / "result.json").read_text())
    assert code == 0
    scores = json.loads(out)
    assert scores.pop("step") == result["checkpoint_step"]
    assert scores == result["test"]


@pytest.mark.slow
def test_predict_answers_on_every_way_in(trained, tmp_path):
    workdir = trained[0]
    images = digits("test", 0).images[:5]
    code, out, err = run("predict", "--workdir", workdir, "--split", "test")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 360
    chances = answers[0]["probabilities"]
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-4)
    assert answers[0]["probability"] == max(chances.values())
    assert answers[0]["label"] == str(answers[0]["id"]) == answers[0]["name"]
    assert [a["row"] for a in answers] == list(range(360))

    lines = "".join(json.dumps(image[..., 0].tolist()) + "\n" for image in images)
    code, out, err = run("predict", "--workdir", workdir, text=lines)
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == answers[:5]

    np.save(tmp_path / "images.npy", images)
    to = tmp_path / "out.jsonl"
    argv = ["--workdir", workdir, "--input", tmp_path / "images.npy", "--output", to]
    assert run("predict", *argv)[0] == 0
    assert [json.loads(line) for line in to.read_text().splitlines()] == answers[:5]

    model = load(workdir)
    np.testing.assert_allclose(
        [list(a["probabilities"].values()) for a in model(images)],
        [list(a["probabilities"].values()) for a in answers[:5]],
        atol=2e-6,
    )
    assert model([]) == []
    with pytest.raises(InputError, match=r"found int64 \(3, 3\) in image 1"):
        model([images[0], np.ones((3, 3), int)])


@pytest.mark.parametrize(
    ("argv", "text", "message"),
    [
        (["--split", "tst"], "", "--split: expected one of train, validation, test"),
        (
            ["--checkpoint", "7"],
            "",
            "--checkpoint: expected best, last, average:N or one of [",
        ),
        (["--input", "none.npy"], "", "--input: no file 'none.npy'"),
        ([], "[[1, 2\n", "--input: expected JSON in line 1"),
        ([], "[[1, 2], [3]]\n", "--input: expected rows of equal length in image 0"),
        (["--split", "test", "--output", "/"], "", "--output: cannot write '/'"),
        (["--config.seed=1"], "", "--config.seed: the config of a run is in its"),
        (["--config.eval.batch_size=0"], "", "eval.batch_size: expected at least 1, f"),
        (["--json", "more"], "", "unexpected argument 'more'"),
    ],
)
def test_predict_names_bad_input(trained, argv, text, message, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    with pytest.raises(InputError) as error:
        main(["--workdir", str(trained[0]), *argv])
    assert str(error.value).startswith(message)


def test_data_that_have_moved_may_be_named(trained):
    parser = flags.Parser(prog="x")
    flags.add_workdirs(parser)
    argv = ["--workdir", str(trained[0]), "--config.data.dir=elsewhere"]
    assert flags.parse_run(parser, argv)[1].data.dir == "elsewhere"


def test_a_run_of_more_devices_is_read_on_those_that_are_there(trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    stored = json.loads((workdir / "config.json").read_text())
    stored["mesh"] = {"data": 1, "fsdp": 16, "tensor": 1}
    (workdir / "config.json").write_text(json.dumps(stored))
    with messages.collected() as said:
        opened = open_run(str(workdir))
    assert dict(opened.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert any(line.startswith("mesh: data=8 instead of") for line in said)
    assert open_runs([workdir, trained[0]]).mesh == opened.mesh

    def given(fsdp):
        parser = flags.Parser()
        flags.add_workdirs(parser)
        argv = [f"--workdir={workdir}", "--config.mesh.data=1"]
        return flags.parse_run(parser, [*argv, f"--config.mesh.fsdp={fsdp}"])[1]

    assert open_run(workdir, config=given(8)).mesh.shape["fsdp"] == 8
    with pytest.raises(InputError, match="mesh: expected axes that multiply to 8"):
        open_run(workdir, config=given(3))


def test_predict_does_not_write_into_what_it_reads(tmp_path):
    given, other = tmp_path / "in.txt", tmp_path / "out.txt"
    given.write_text("text")
    refuse_input(str(other), [str(given), "-"])
    refuse_input("-", [str(given), "-"])
    (tmp_path / "link").symlink_to(given)
    for output in (given, tmp_path / "link"):
        with pytest.raises(InputError, match="--output: expected another file than"):
            refuse_input(str(output), ["-", str(given)])


def test_no_run_is_said_at_once(tmp_path):
    code, _, err = run("predict", "--workdir", tmp_path / "nowhere")
    assert code == 2
    assert err.startswith(f"error: --workdir: no run in {tmp_path}/nowhere")
    assert "Traceback" not in err
    with pytest.raises(InputError, match="--workdir: no run in"):
        evaluate.main(["--workdir", str(tmp_path / "nowhere")])


def test_training_loads_no_tensorflow_and_no_torch(trained):
    loaded = Path(f"{trained[0]}.modules").read_text().split()
    assert {"jax", "orbax"} < set(loaded)
    assert not {"tensorflow", "torch", "sklearn"} & set(loaded)
