"""Model card of an export, and the upload to a hub on loopback."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from helpers.hub import Hub, use
from huggingface_hub import ModelCard, constants, hf_hub_download

from rdrop_jax.cli import export, model_card
from rdrop_jax.config import base_config
from rdrop_jax.errors import InputError

REPO, PUSH = "org/digits", "hf:org/digits"


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of a run whose command is that of the program."""
    copy = shutil.copytree(finished[0], tmp_path / "my_vit")
    path = copy / "result.json"
    result = json.loads(path.read_text())
    result["run"]["command"] = ["/x/rdrop_jax/cli/train.py", "--config", "a b.py"]
    path.write_text(json.dumps(result))
    return copy


@pytest.fixture
def hub(monkeypatch, tmp_path):
    served = Hub()
    with served.serve():
        use(monkeypatch, served, tmp_path / "home")
        monkeypatch.setenv("HF_TOKEN", served.token)
        yield served


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_card_contains_data_scores_objective_and_command(workdir, tmp_path):
    step = export.export(workdir, tmp_path / "out", license="apache-2.0")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-classification",
        "tags": ["r-drop"],
    }
    result = json.loads((workdir / "result.json").read_text())
    test = result["test"]
    lines = card.content.splitlines()
    assert "# my_vit" in lines
    assert f"| split | {' | '.join(test)} |" in lines
    assert f"| test | {' | '.join(f'{x:.5g}' for x in test.values())} |" in lines
    for name, checksum in result["data"].items():
        assert f"| {name} | {checksum} |" in lines
    for row in ("| alpha | 1.0 |", "| divergence | symmetric_kl |", "| seed | 0 |"):
        assert row in lines
    assert f"| step | {step} |" in lines
    assert "    python -m rdrop_jax.train --config 'a b.py'" in lines
    assert f"jax {result['run']['versions']['jax']}, " in card.content
    assert "2 passes with dropout" in card.content
    assert "These are scores of step" not in card.content


def test_a_card_names_models_and_data_of_the_hub(workdir, tmp_path):
    def change(config):
        config["init_from"] = "hf:google/vit@main"

    edit(workdir / "config.json", change)
    edit(workdir / "result.json", lambda r: r.update(init={"commit": "c0ffee"}))
    export.export(workdir, tmp_path / "out", checkpoint="4", format="npz")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "google/vit"
    assert card.data.library_name is card.data.license is None
    assert "| commit of the initial weights | c0ffee |" in card.content
    assert "; the weights: step 4." in card.content


def test_a_card_names_a_dataset_of_the_hub(finished):
    from rdrop_jax.cli.model_card import model_card
    from rdrop_jax.training import workdir as workdir_lib

    config = workdir_lib.read(finished[0]).copy_and_resolve_references().unlock()
    config.data.name, config.rdrop.alpha = "hf:nyu-mll/glue/rte@v1", 0.0
    text = model_card(config, finished[0], 6, "safetensors")
    assert '\ndatasets: ["nyu-mll/glue"]\n' in text
    assert "without R-Drop" in text


def test_an_incomplete_run_has_a_card_without_scores(workdir, tmp_path):
    (workdir / "result.json").unlink()
    export.export(workdir, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None: the run was not complete" in text
    assert "| digits.csv.gz | " in text


def test_a_push_creates_a_repository_with_all_files(hub, workdir, tmp_path, capsys):
    for out in ("a", "b"):  # the second time, the repository exists
        argv = ["--workdir", str(workdir), "--output", str(tmp_path / out)]
        export.main([*argv, "--push", PUSH])
        assert capsys.readouterr().out.endswith(f"uploaded to {PUSH}\n")
        for path in (tmp_path / out).iterdir():
            found = hf_hub_download(REPO, path.name, cache_dir=tmp_path / f"cache{out}")
            assert Path(found).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"HTTP 401\). Set HF_TOKEN to a token with write access to org/digits"),
        (403, r"HTTP 403\). Set HF_TOKEN to a token with write access to org/digits"),
        (400, r"HTTP 400\)"),
    ],
)
def test_a_refused_push_keeps_the_folder(hub, workdir, tmp_path, status, message):
    hub.status = status
    with pytest.raises(InputError, match=f"^--push: {PUSH}: .*{message}") as error:
        export.export(workdir, tmp_path / "out", push=PUSH)
    assert f"run `hf upload {REPO} {tmp_path / 'out'}`" in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_push_without_network(hub, workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127.0.0.1:9 cannot be reached .*network"):
        export.export(workdir, tmp_path / "out", push=PUSH)


@pytest.mark.parametrize(
    ("push", "message"),
    [
        ("org/digits", "expected hf:ORG/NAME, got 'org/digits'"),
        ("hf:digits", "expected hf:ORG/NAME, got 'hf:digits'"),
        ("hf:org/digits@v1", "expected hf:ORG/NAME, got"),
        ("hf:a/b/c", "expected hf:ORG/NAME"),
    ],
)
def test_bad_repositories_are_refused_before_jax_starts(push, message):
    with pytest.raises(InputError, match=f"^--push: {message}"):
        export.check_push(push)


def test_a_push_needs_a_token_and_the_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="expected a token with write access, got non"):
        export.check_push(PUSH)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="got HF_HUB_OFFLINE=1"):
        export.check_push(PUSH)


def test_a_card_names_the_views():
    def method(**fields):
        config = base_config()
        config.rdrop.update(fields)
        return model_card._method(config)

    assert method(views="crop").endswith("in each pass: crop of rdrop_jax's views.")
    assert "views" not in method()
    assert "with SimCut" in method(views="simcut")
    plain = method(views="simcut", alpha=0.0)
    assert "without R-Drop" in plain
    assert "simcut" not in plain.lower()
