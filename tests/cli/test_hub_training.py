"""Training from models and datasets by name, from a hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import texts, tiny, tiny_lm, tiny_nmt, tiny_sum
from helpers.hub import environment, forget, go_offline
from helpers.processes import Processes

from rdrop_jax.cli import train as train_program
from rdrop_jax.pretrained import hub as weights_hub

pytest.importorskip("datasets", reason="needs the extra [hub]")
from helpers.repositories import (
    FILMS,
    films,
    json_lines,
    pets,
    tiny_bart,
    tiny_bert,
)

from rdrop_jax.data import hub as data_hub

ROOT = Path(__file__).parents[2]


def articles(count, words=tiny_sum.WORDS):
    return [
        {
            "article": " ".join(words[(i * 7 + j) % 10] for j in range(3 + i % 6)),
            "highlights": f"{words[i * 7 % 10]} {words[(i * 7 + 1) % 10]}",
        }
        for i in range(count)
    ]


def sentences(count):
    return [
        {"translation": {"de": text, "en": text.upper()}}
        for text in (row["article"] for row in articles(count))
    ]


def running(count):
    return [{"text": line} for line in tiny_lm.text(count)]


def splits(make, size):
    return json_lines(train=make(size), validation=make(9), test=make(9))


def stored(kind, *more):
    folder = ROOT / "tests" / "parity" / kind
    names = ("config.json", "model.safetensors", *more)
    return {name: (folder / name).read_bytes() for name in names}


# Config, its tiny fields, files of the dataset, files of the model.
TASKS = {
    "images": (
        f"{tiny.VIT}:folder",
        {n: tiny.TINY[n] for n in tiny.TINY if not n.startswith("model.")}
        | {"batch_size": 8, "data.image_size": 8, "eval.batch_size": 8},
        lambda: pets(16, 4),
        lambda: stored("vit"),
    ),
    "texts": (
        f"{texts.GLUE}:files",
        {n: texts.TINY[n] for n in texts.TINY if not n.startswith("model.")}
        | {"data.columns.text_b": "text_b", "data.name": f"hf:{FILMS}/pairs"},
        films,
        tiny_bert,
    ),
    "translation": (
        f"{tiny_nmt.NMT}:files",
        {
            n: tiny_nmt.TINY[n]
            for n in tiny_nmt.TINY
            if not n.startswith(("data.files", "data.columns", "model."))
        }
        | {"data.max_length": 40, "batch_tokens": 512},
        lambda: splits(sentences, 40),
        lambda: stored("marian", "source.spm", "target.spm", "vocab.json"),
    ),
    "summarization": (
        f"{tiny_sum.SUMMARIZATION}:files",
        {
            n: tiny_sum.TINY[n]
            for n in tiny_sum.TINY
            if not n.startswith(("data.files", "data.columns", "model."))
        },
        lambda: splits(articles, 40),
        lambda: tiny_bart([row["article"] for row in articles(40)]),
    ),
    "text": (
        f"{tiny_lm.LM}:files",
        tiny_lm.TINY,
        lambda: splits(running, 60),
        None,  # only workdirs
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_trains_by_name_then_offline_then_resumes(hub, monkeypatch, tmp_path, task):
    """From an empty cache, from the cache alone, and after main has lost the data."""
    config, fields, dataset, model = TASKS[task]
    name = fields.get("data.name", "files")
    name = name if name.startswith("hf:") else "hf:org/data"
    repo = "/".join(name.removeprefix("hf:").split("/")[:2])
    commit = hub.add(repo, dataset(), kind="datasets")
    fields = fields | {"data.name": name, "eval.every": 2, "checkpoint.every": 2}
    if model:
        weights = hub.add("org/model", model())
        fields["init_from"] = "hf:org/model"

    def train(workdir, steps=2):
        forget()
        given = fields | {"total_steps": steps}
        flags = [f"--config.{n}={x}" for n, x in given.items()]
        argv = [f"--config={config}", f"--workdir={tmp_path / workdir}", *flags]
        train_program.main(argv)
        return json.loads((tmp_path / workdir / "result.json").read_text())

    first = train("run")
    assert first["data"][name] == commit
    if model:
        assert first["init"]["commit"] == weights
    assert hub.add(repo, {"README.md": "# gone"}, kind="datasets") != commit
    resumed = train("run", steps=3)
    assert resumed["step"] == 3
    assert resumed["data"] == first["data"]
    go_offline(monkeypatch)
    asked = len(hub.requests)
    offline = train("offline")
    assert len(hub.requests) == asked
    assert offline["test"] == first["test"]
    assert offline["data"] == first["data"]


@pytest.mark.slow
def test_trains_from_a_model_and_a_dataset_by_name_in_a_process(hub, tmp_path):
    """From an empty cache, then offline from the cache, with the same bits."""
    hub.add("org/tiny-bert", tiny_bert())
    commit = hub.add(FILMS, films(), kind="datasets")
    name = f"hf:{FILMS}/pairs"
    kept = ("total_steps", "batch_size", "eval.every", "log.trackers")
    kept += ("data.max_length", "data.buckets", "checkpoint.every")
    overrides = {n: texts.TINY[n] for n in kept}
    overrides |= {"init_from": "hf:org/tiny-bert", "data.name": name}
    overrides |= {"data.columns.text_b": "text_b"}
    flags = [f"--config.{k}={v}" for k, v in overrides.items()]
    found = []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        workdir = tmp_path / f"run{len(found)}"
        argv = [sys.executable, "-m", "rdrop_jax.train", f"--config={texts.GLUE}:files"]
        done = subprocess.run(
            [*argv, f"--workdir={workdir}", *flags],
            env=os.environ | environment(hub, tmp_path / "home") | more,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads((workdir / "result.json").read_text()))
    first, second = found
    assert first["data"][name] == commit
    assert first["init"]["commit"] in done.stdout + done.stderr
    assert first["test"] == second["test"]
    assert first["test"]["examples"] == 16
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["data"]["classes"] == ["good", "bad"]
    assert stored["data"]["files"] == {s: s for s in ("train", "validation", "test")}
    assert stored["model"]["width"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("field", ["data.name", "init_from"])
def test_hosts_with_different_commits_stop_with_one_line(
    hub, monkeypatch, tmp_path, field
):
    """Process 0 is offline and has the first commit, process 1 gets the second."""
    names = {"data.name": FILMS, "init_from": "org/tiny-bert"}
    kinds = {"data.name": "datasets", "init_from": "models"}
    hub.add("org/tiny-bert", tiny_bert())
    hub.add(FILMS, films(), kind="datasets")
    data_hub.load(f"hf:{FILMS}/pairs")
    weights_hub.snapshot("hf:org/tiny-bert")
    # Labels of other classes change a field of the config as well.
    files = dict(hub.files_of(names[field], kind=kinds[field]))
    if field == "data.name":
        files["README.md"] = files["README.md"].replace(b"good", b"fine")
    hub.add(names[field], files, kind=kinds[field])
    fields = {n: x for n, x in texts.TINY.items() if not n.startswith("model.")}
    fields |= {"data.name": f"hf:{FILMS}/pairs", "init_from": "hf:org/tiny-bert"}
    argv = [f"--config={texts.GLUE}:files", f"--workdir={tmp_path / 'run'}"]
    argv += [f"--config.{n}={x}" for n, x in fields.items()]
    homes = [
        environment(hub, tmp_path / "home") | {"HF_HUB_OFFLINE": "1"},
        environment(hub, tmp_path / "other"),
    ]
    with Processes("train", *argv, variables=homes) as running:
        for code, _, err in running.end():
            assert code == 2, err
            line = next(x for x in err.splitlines() if x.startswith("error: "))
            assert f"error: {field}: expected the same commit on all" in line
            assert line.count("@") == 2
            assert "process 1 " in line
    assert not (tmp_path / "run" / "checkpoints").exists()
