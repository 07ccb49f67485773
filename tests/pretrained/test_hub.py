"""Weights by name from a hub on loopback, through the real client."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import Hub, environment, use
from helpers.tiny import config, train
from huggingface_hub import constants, file_download
from safetensors.numpy import load_file, save

from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import hub as weights_hub
from rdrop_jax.training import workdir as workdir_lib

VIT = Path(__file__).parents[1] / "parity" / "vit"
REPO, NAME = "org/tiny-vit", "hf:org/tiny-vit"
SHAPE = {
    "model.layers": 2,
    "model.width": 24,
    "model.heads": 3,
    "model.mlp_width": 40,
    "reinit": "head",
}


def repository():
    """The stored model with one channel of three, for the digits."""
    arrays = load_file(VIT / "model.safetensors")
    kernel = "vit.embeddings.patch_embeddings.projection.weight"
    arrays[kernel] = np.ascontiguousarray(arrays[kernel][:, :1])
    return {
        "config.json": (VIT / "config.json").read_bytes(),
        "model.safetensors": save(arrays),
        "pytorch_model.bin": b"\x80pickle",
        "README.md": "# card",
        "modeling.py": "raise SystemExit",
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    served = Hub()
    with served.serve():
        use(monkeypatch, served, tmp_path / "home")
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
        weights_hub.snapshot.cache_clear()
        yield served
    weights_hub.snapshot.cache_clear()


def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    weights_hub.snapshot.cache_clear()


def blobs(tmp_path):
    return [*(tmp_path / "home").rglob("blobs/*")]


def test_fetches_weights_and_config_alone_and_then_works_offline(
    hub, monkeypatch, tmp_path
):
    commit = hub.add(REPO, repository())
    folder = weights_hub.snapshot(NAME)
    assert folder.name == commit
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert (folder / "model.safetensors").read_bytes() == repository()[
        "model.safetensors"
    ]
    asked = len(hub.requests)
    offline(monkeypatch)
    assert weights_hub.snapshot(NAME) == folder
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_a_run_records_the_commit_and_resumes_without_the_hub(hub, tmp_path):
    commit = hub.add(REPO, repository())
    workdir = tmp_path / "run"
    result = train(workdir, init_from=NAME, total_steps=2, **SHAPE)
    assert result["init"]["from"] == NAME
    assert result["init"]["commit"] == commit
    assert json.loads((workdir / "config.json").read_text())["init_from"] == NAME
    asked = len(hub.requests)
    weights_hub.snapshot.cache_clear()
    result = train(workdir, init_from=NAME, total_steps=3, **SHAPE)
    assert len(hub.requests) == asked
    assert result["init"]["commit"] == commit


def test_a_resumed_run_uses_the_recorded_commit(hub, tmp_path):
    first = hub.add(REPO, repository())
    made = config(init_from=NAME, **SHAPE)
    workdir = tmp_path / "run"
    workdir.mkdir()
    workdir_lib.record_init(workdir, NAME, {}, first)
    second = hub.add(REPO, repository())
    assert weights_hub.commit_of(weights_hub.located(made)) == second
    assert weights_hub.commit_of(weights_hub.located(made, workdir)) == first
    other = config(init_from=f"{NAME}@main", **SHAPE)
    assert weights_hub.commit_of(weights_hub.located(other, workdir)) == second


def test_revisions(hub, monkeypatch):
    first = hub.add(REPO, repository(), refs=("v1",))
    second = hub.add(REPO, repository(), refs=("main", "refs/pr/3"))
    for revision, commit in {
        "@v1": first,
        "": second,
        "@refs/pr/3": second,
        f"@{first}": first,
    }.items():
        assert weights_hub.snapshot(NAME + revision).name == commit
    with pytest.raises(InputError, match=r"^init_from: .*found no 'v2'. Correct what"):
        weights_hub.snapshot(f"{NAME}@v2")
    offline(monkeypatch)
    assert weights_hub.snapshot(f"{NAME}@v1").name == first
    assert weights_hub.snapshot(NAME).name == second


def test_a_download_that_breaks_off_resumes(hub, monkeypatch):
    hub.add(REPO, repository())
    whole = repository()["model.safetensors"]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = 20_000
    folder = weights_hub.snapshot(NAME)
    assert (folder / "model.safetensors").read_bytes() == whole
    found = hub.downloads("model.safetensors")
    assert [ranged for _, _, ranged in found] == [None, "bytes=20000-"]


def test_unknown_name(hub):
    with pytest.raises(InputError, match=r"^init_from: hf:org/no: .*Correct the name"):
        weights_hub.snapshot("hf:org/no")


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_gated(hub, monkeypatch, tmp_path, token):
    hub.add(REPO, repository())
    hub.gated.add(REPO)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=r"^init_from: .*Accept its terms at http"):
        weights_hub.snapshot(NAME)
    assert not blobs(tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (weights_hub.snapshot(NAME) / "model.safetensors").is_file()


@pytest.mark.parametrize("status", [401, 403, 500])
def test_refused(hub, status):
    hub.status = status
    with pytest.raises(InputError, match=r"^init_from: hf:org/tiny-vit: ") as found:
        weights_hub.snapshot(NAME)
    assert "\n" not in str(found.value)
    assert ("HF_TOKEN" in str(found.value)) == (status != 500)


def test_no_network(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^init_from: .*cannot be reached") as found:
        weights_hub.snapshot(NAME)
    assert "\n" not in str(found.value)


def test_offline_without_a_copy(hub, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE is set, found none"):
        weights_hub.snapshot(NAME)


def test_offline_with_half_a_copy(hub, monkeypatch, tmp_path):
    hub.add(REPO, repository())
    folder = weights_hub.snapshot(NAME)
    (folder / "model.safetensors").unlink()
    offline(monkeypatch)
    with pytest.raises(InputError, match=r"expected a complete copy"):
        weights_hub.snapshot(NAME)


def test_pickles_alone(hub, tmp_path):
    kept = {k: v for k, v in repository().items() if k != "model.safetensors"}
    hub.add(REPO, kept)
    with pytest.raises(InputError, match=r"expected weights in model.safetensors"):
        weights_hub.snapshot(NAME)
    assert not hub.downloads(".bin")


def test_a_corrupt_file_is_not_used(hub):
    hub.add(REPO, repository())
    whole = repository()["model.safetensors"]
    hub.wrong["model.safetensors"] = whole[:-1] + bytes([whole[-1] ^ 1])
    with pytest.raises(
        InputError, match=r"the file is corrupt. Delete (\S+),"
    ) as found:
        weights_hub.snapshot(NAME)
    hub.wrong.clear()
    Path(str(found.value).split("Delete ")[1].split(",")[0]).unlink()
    folder = weights_hub.snapshot(NAME)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_truncated_file_is_not_used(hub, tmp_path):
    hub.add(REPO, repository())
    hub.wrong["model.safetensors"] = repository()["model.safetensors"][:-100]
    with pytest.raises(InputError, match=r"^init_from: .*start again"):
        weights_hub.snapshot(NAME)
    assert [p.name for p in (tmp_path / "home").rglob("*.incomplete")] == []


def test_no_space(hub, monkeypatch):
    hub.add(REPO, repository())

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "blob")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(InputError, match=r"No space left.*set HF_HOME to a folder"):
        weights_hub.snapshot(NAME)


def test_spelling(tmp_path):
    for bad in ("hf:", "hf:a/b/c", "hf:a b", "hf:a/b@", "hf:../b"):
        with pytest.raises(InputError, match=r"init_from: expected hf:ORG/NAME\[@REV"):
            weights_hub.snapshot(bad)
    with pytest.raises(InputError, match=r"use --config.init_from=hf:google/vit-base"):
        train(tmp_path / "run", init_from="google/vit-base")
    with pytest.raises(InputError, match=r"use hf:ORG/NAME in init_from or data.name"):
        config(init_from="hf://google/vit-base")


def test_a_task_without_such_weights_downloads_nothing(hub, tmp_path):
    from rdrop_jax import flags
    from rdrop_jax import train as train_program

    hub.add(REPO, repository())
    made = flags.load("configs/lm.py", {"init_from": NAME})
    with pytest.raises(InputError, match=r"expected a workdir for this task"):
        train_program.train(made, tmp_path / "run")
    assert not hub.requests


def test_variables_of_the_client(hub, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE of a process."""
    hub.add(REPO, repository())
    hub.gated.add(REPO)
    program = (
        "from rdrop_jax.pretrained import hub\n"
        f"print(hub.snapshot({NAME!r}).relative_to({str(tmp_path / 'cache')!r}))"
    )
    shared = os.environ | environment(hub, tmp_path / "cache")
    for more in ({"HF_TOKEN": hub.token}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=shared | more,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("hub/models--org--tiny-vit/snapshots/")
