"""File names that are not UTF-8, in every program that reads or prints them."""

import io
import json
import os
import sys
from types import SimpleNamespace

import pytest
from helpers import tiny
from helpers.pictures import encoded, noise
from tokenizers import Tokenizer, models

from rdrop_jax import train
from rdrop_jax.cli import flags, predict, process, run
from rdrop_jax.data import tokenizer_files
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths
from rdrop_jax.tasks.image_classification import folder
from rdrop_jax.tasks.image_classification.predict import read_images
from rdrop_jax.training import workdir as workdir_lib

NAME = "caf\udce9.png"


@pytest.fixture
def answering(monkeypatch):
    """Predict with a model that returns its inputs."""
    predictor = SimpleNamespace(
        read=lambda path: [path],
        run=lambda params, inputs: ({"input": path} for path in inputs),
        text=None,
    )
    opened = SimpleNamespace(
        predictor=lambda: predictor, params=None, task=SimpleNamespace(evaluators={})
    )
    monkeypatch.setattr(run, "open_runs", lambda *args: opened)
    monkeypatch.setattr(flags, "parse_run", lambda p, argv: (p.parse_args(argv), None))
    return predictor


@pytest.mark.parametrize(
    ("encoding", "errors"),
    [("utf-8", "strict"), ("ascii", "strict"), ("utf-8", "surrogateescape")],
)
def test_answers_on_any_standard_output(monkeypatch, answering, encoding, errors):
    out = io.TextIOWrapper(io.BytesIO(), encoding, errors)
    monkeypatch.setattr(sys, "stdout", out)
    predict.main(["--workdir", "w", "--input", NAME, "größe.png"])
    out.flush()  # it is still open
    lines = out.buffer.getvalue().splitlines()
    assert [json.loads(line)["input"] for line in lines] == [NAME, "größe.png"]
    assert (b"\\u00f6" in lines[1]) == (encoding == "ascii")


def test_answers_in_a_file(tmp_path, answering):
    output = tmp_path / "out\udce9.jsonl"
    predict.main(["--workdir", "w", "--input", "a", NAME, "--output", str(output)])
    found = [json.loads(line)["input"] for line in output.read_bytes().splitlines()]
    assert found == ["a", NAME]
    assert os.fsencode(found[1]) == b"caf\xe9.png"


def test_a_text_that_the_output_cannot_hold():
    with pytest.raises(InputError, match=r"found ascii, which lacks '\\xf6'. Set PYTH"):
        predict.line_of({"text": "schön"}, lambda answer: answer["text"], "ascii")


def test_standard_output_escapes_what_it_cannot_hold(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict")
    monkeypatch.setattr(sys, "stdout", out)
    process.check_streams()
    print(NAME, flush=True)
    assert out.buffer.getvalue() == b"caf\\udce9.png\n"


@pytest.mark.parametrize("use", [workdir_lib.read, predict.load, paths.workdir])
def test_a_workdir_that_is_not_utf8_is_refused(tmp_path, use):
    path = tmp_path / "r\udce9"
    with pytest.raises(InputError, match=r"--workdir: .*UTF-8, found '.*r\\udce9'. Re"):
        use(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(InputError, match="--workdir: expected a path in UTF-8"):
        train.check_start(tiny.config(), link)
    path.symlink_to(tmp_path)
    assert paths.workdir(path) == path


def test_a_tokenizer_in_a_folder_that_is_not_utf8(tmp_path):
    place = tmp_path / "t\udce9"
    place.mkdir()
    made = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    (place / "tokenizer.json").write_text(made.to_str())
    assert tokenizer_files.load(place).get_vocab_size() == 2


def test_lists_and_tables_with_names_that_are_not_utf8(tmp_path):
    (tmp_path / NAME).write_bytes(encoded(noise(1)[0]))
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.png\n")
    assert list(read_images(str(tmp_path / "list.txt"))) == [tmp_path / NAME]
    table = tmp_path / "labels.tsv"
    table.write_bytes(b"caf\xe9.png\tcat\nb.png\tdog\n")
    splits, _ = folder.find(tmp_path)
    assert os.path.exists(splits["train"][0]["image"])
    table.write_bytes(b"a.png\tcat\nb.png\tcaf\xe9\n")
    with pytest.raises(InputError, match=r"line 2: expected a label in UTF-8"):
        folder.find(tmp_path)


def test_white_space_around_listed_paths(tmp_path):
    for name in ("a.png", "b.png "):
        (tmp_path / name).write_bytes(encoded(noise(1)[0]))
    (tmp_path / "list.txt").write_text(" a.png \nb.png \n")
    (tmp_path / "labels.tsv").write_text(" a.png \tcat\nb.png \tdog\n")
    assert [path.name for path in read_images(str(tmp_path / "list.txt"))] == [
        "a.png",
        "b.png ",
    ]
    assert folder.find(tmp_path)[0]["train"].paths == ("a.png", "b.png ")


def test_two_spellings_of_a_path_have_one_label(tmp_path):
    (tmp_path / "labels.tsv").write_text("a.png\tcat\n./a.png\tdog\n")
    with pytest.raises(InputError, match=r"line 2: expected one label for './a.png'"):
        folder.find(tmp_path)
