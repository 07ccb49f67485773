"""Every example runs as a user runs it, and learns."""

import ast
import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

import rdrop_jax

FOLDER = Path(__file__).parents[2] / "examples"
LONG = ("nnx_mesh", "nnx_vit", "semi_supervised")
EXAMPLES = [
    pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ())
    for path in sorted(FOLDER.glob("*.py"))
    if path.stem != "spoken_digits"  # needs data
]
INTEGRATIONS = [
    path
    for path in sorted((FOLDER / "integrations").glob("*.py"))
    if not path.stem.startswith(("conftest", "test_"))
]


def load(path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    if path.stem == "equinox_mlp":
        pytest.importorskip("equinox", reason="equinox is in the extra dev")
    module = load(path)
    if path.stem == "semi_supervised":
        assert module.main(steps=150) > 0.8  # of 2,000, for the time
    elif path.stem == "nnx_vit":
        assert module.main(steps=60) > 0.6  # of 300
    elif path.stem in FRAMEWORKS:
        accuracy, kl = module.main()
        assert accuracy > 0.85
        assert kl > 0
    else:
        assert module.main() > 0.85
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.stem)
def test_integration_is_short_and_imports_public_names(path):
    """Training needs the framework: `make integrations`."""
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 100
    names = {
        node.module: node.names
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    ours = [alias.name for alias in names.get("rdrop_jax", [])]
    # An example may take the loss from another one.
    assert ours or set(names) & {other.stem for other in INTEGRATIONS}
    assert set(ours) <= set(rdrop_jax.__all__)
    framework = path.stem.split("_")[0]
    assert (path.parent / f"requirements-{framework}.txt").exists()


@pytest.mark.parametrize(
    ("message", "status"),
    [("No matching distribution found", 1), ("NewConnectionError", 0)],
)
def test_script_names_frameworks_that_are_not_installed(message, status, tmp_path):
    """A missing network is no failure."""
    python = tmp_path / "keras" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho 'ERROR: {message}'\nexit 1\n")
    python.chmod(0o755)
    found = subprocess.run(
        ["sh", FOLDER.parent / ".ci" / "integrations", "keras"],
        env=os.environ | {"INTEGRATIONS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == status
    assert found.stdout.splitlines()[-1] == "not installed: keras"


SHOWN = load(FOLDER / "integrations" / "test_integrations.py")
SHARDED = ("equinox_mlp", "linen", "nnx_mesh", "plain_jax")
FRAMEWORKS = (*SHARDED, "nnx", "nnx_optimizer")


@pytest.fixture
def name(request, monkeypatch):
    if request.param == "equinox_mlp":
        pytest.importorskip("equinox", reason="equinox is in the extra dev")
    monkeypatch.syspath_prepend(FOLDER)
    return request.param


@pytest.mark.parametrize("name", FRAMEWORKS, indirect=True)
def test_example_stops_if_dropout_is_off(name):
    SHOWN.test_stops_if_dropout_is_off(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS, indirect=True)
def test_loss_and_divergence_of_an_example(name):
    SHOWN.test_loss_is_that_of_stored_logits(name)
    SHOWN.test_divergence_falls_when_alpha_rises(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED, indirect=True)
def test_one_and_eight_devices_train_the_same_model(name, capsys):
    SHOWN.test_one_and_eight_devices_agree(name)
    if name == "nnx_mesh":  # the kernel and its moment
        printed = capsys.readouterr().out
        assert printed.count("'data': 4, 'model': 2") == 2
        assert printed.count("(None, 'model')") == 2


@pytest.mark.slow
def test_semi_supervised_beats_labels_alone():
    module = load(FOLDER / "semi_supervised.py")
    gains = [module.main(seed=s) - module.main(seed=s, alpha=0.0) for s in (0, 1)]
    assert sum(gains) > 0
