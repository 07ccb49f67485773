"""Paths that are URLs, or that no file system holds, for every program."""

import importlib
from pathlib import Path

import pytest
from helpers.tiny import VIT, config

from rdrop_jax import evaluate, export, flags, predict, train
from rdrop_jax.cli import prepare
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths, roots
from rdrop_jax.training import workdir

CLOUD = ["gs://b/x", "s3://b/x", "gs:/b/x", "S3:/b/x", "hdfs://n/x", "az://b/x"]
WEB = ["http://h/x", "https://h/x", "hf://o/x", "hf:/o/x"]


@pytest.mark.parametrize("url", [*CLOUD, *WEB, "other://h/x"])
def test_urls_are_refused_with_a_remedy(url):
    remedy = "Download it" if url in WEB else "Mount the storage"
    stores = {"gs": "lacks .* `gcloud storage rsync -r", "s3": "lacks .* `aws s3 sync"}
    remedy = stores.get(url.split(":")[0].lower(), remedy)
    remedy = "use hf:ORG/NAME" if url.startswith("hf:") else remedy
    with pytest.raises(InputError, match=rf"--x: expected a local path.*{remedy}"):
        paths.local("--x", url)
    with pytest.raises(InputError, match="expected a local path"):
        paths.local("--x", Path(url) if "other" not in url else url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///data/x", "/data/x"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("file:///data/a%20b", "/data/a b"),
    ],
)
def test_a_file_url_names_its_path(url, path):
    with pytest.raises(InputError, match=f"Use '{path}'$"):
        paths.local("--x", url)


@pytest.mark.parametrize(
    "path", ["", "-", "runs/vit", "runs/vit:25", "a:b", "C:/x", "./gs:/x", "x" * 255]
)
def test_local_paths_are_taken(path):
    assert paths.local("--x", path) == Path(path)


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 256, "é" * 128, "a/" * 3000, "\ud83d"], ids=ascii
)
def test_names_that_no_file_system_holds_are_refused(path):
    with pytest.raises(InputError, match="--x: expected"):
        paths.local("--x", path)


URL, S3 = "gs://bucket/x", "s3://bucket/x"
RUN = ["--config", VIT]


@pytest.mark.parametrize(
    ("program", "field", "argv"),
    [
        ("train", "--workdir", [*RUN, "--workdir", URL]),
        ("train", "--config", ["--config", URL]),
        ("train", "data.dir", [*RUN, f"--config.data.dir={URL}"]),
        ("train", "init_from", [*RUN, f"--config.init_from={URL}"]),
        ("evaluate", "--workdir", ["--workdir", URL]),
        ("predict", "--workdir", ["--workdir", URL]),
        ("export", "--workdir", ["--workdir", URL, "--output", "x"]),
        ("export", "--output", ["--workdir", "x", "--output", URL]),
        ("prepare", "--data_dir", ["glue/rte", "--data_dir", URL]),
        ("prepare", "--from", ["glue/rte", "--data_dir", "x", "--from", URL]),
        ("compare", "--workdir", [*RUN, "--workdir", URL]),
    ],
)
def test_every_program_refuses_a_url(program, field, argv, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"rdrop_jax.{program}").main
    for url in (URL, S3):
        with pytest.raises(InputError) as error:
            main([word.replace(URL, url) for word in argv])
        message = str(error.value)
        assert message.startswith(f"{field}: expected a local path, found the URL")
        assert "A bucket lacks the locks, renames and fsync" in message
        assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--input", "--output"])
def test_predict_refuses_a_url(flag, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^{flag}: expected a local path"):
        predict.main(["--workdir", str(finished[0]), flag, URL])


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("glue.py:files", "data.files.train"),
        ("glue.py:files", "data.tokenizer"),
        ("lm.py:files", "data.files.test"),
        ("lm.py:files", "data.vocabulary"),
        ("nmt.py:files", "data.files.validation"),
        ("summarization.py:files", "data.tokenizer"),
    ],
)
def test_fields_of_every_task_refuse_a_url(file, field):
    with pytest.raises(InputError, match=f"^{field}: expected a local path"):
        flags.load(file, {field: URL})


def test_functions_refuse_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = [
        lambda: train.train(config(), Path(URL)),
        lambda: predict.load(URL),
        lambda: evaluate.evaluate(Path(URL), "test", "best"),
        lambda: export.export(tmp_path, Path(URL)),
        lambda: prepare.prepare("glue/rte", Path(URL), []),
        lambda: workdir.read(Path(URL)),
    ]
    for call in calls:
        with pytest.raises(InputError, match="expected a local path"):
            call()
    assert not list(tmp_path.iterdir())


def test_the_data_folder_of_the_environment_is_checked(monkeypatch):
    monkeypatch.setenv("RDROP_DATA_DIR", URL)
    with pytest.raises(InputError, match=r"^\$RDROP_DATA_DIR: expected a local path"):
        roots.root(config().data)


@pytest.mark.parametrize("file", ["glue", "nmt", "lm"])
def test_a_missing_file_in_the_folder_of_the_environment(file, monkeypatch, tmp_path):
    monkeypatch.setenv("RDROP_DATA_DIR", str(tmp_path))
    names = {"data.files.train": "lost.tsv"}
    spec = f"configs/{file}.py:files"
    with pytest.raises(InputError, match=r"^data.files.train in \$RDROP_DATA_DIR: "):
        train.check_start(flags.load(spec, names), tmp_path)
    names["data.files.train"] = str(tmp_path / "lost.tsv")
    with pytest.raises(InputError, match=r"^data.files.train: expected "):
        train.check_start(flags.load(spec, names), tmp_path)
    names |= {"data.dir": ".", "data.files.train": "lost.tsv"}
    with pytest.raises(InputError, match=r"^data.files.train: expected .*lost.tsv"):
        train.check_start(flags.load(spec, names), tmp_path)


def test_the_address_of_a_repository_is_answered_with_its_name():
    for address in (
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/org/name/tree/main",
    ):
        with pytest.raises(InputError, match=r"of the Hub, use hf:org/name$"):
            paths.local("data.name", address)
