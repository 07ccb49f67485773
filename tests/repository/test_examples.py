"""Every example runs as a user runs it, and learns."""

import ast
import importlib.util
import re
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
    else:
        assert module.main() > 0.85
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.stem)
def test_integration_is_short_and_imports_public_names(path):
    """Training needs the framework: `make integrations`."""
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 100
    ours = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "rdrop_jax"
        for alias in node.names
    ]
    assert ours
    assert set(ours) <= set(rdrop_jax.__all__)
    framework = path.stem.split("_")[0]
    assert (path.parent / f"requirements-{framework}.txt").exists()


@pytest.mark.slow
def test_one_and_eight_devices_train_the_same_nnx_model(capsys):
    module, found = load(FOLDER / "nnx_mesh.py"), []
    for devices, alpha in ((1, 0.1), (8, 0.1), (8, 10.0)):
        accuracy = module.main(steps=60, devices=devices, alpha=alpha)
        printed = capsys.readouterr().out
        found.append((accuracy, float(re.search(r"kl (\S+)", printed)[1])))
        if devices == 8:  # the kernel and its moment
            assert printed.count("'data': 4, 'model': 2") == 2
            assert printed.count("(None, 'model')") == 2
    one, eight, strong = found
    assert eight == pytest.approx(one, rel=0.02)
    assert eight[1] > strong[1] > 0


FRAMEWORKS = ("equinox_mlp", "linen", "nnx", "nnx_mesh", "nnx_optimizer", "plain_jax")


def changed(name, old, new, tmp_path):
    """Load an example with other numbers."""
    if name == "equinox_mlp":
        pytest.importorskip("equinox", reason="equinox is in the extra dev")
    text = (FOLDER / f"{name}.py").read_text()
    assert old in text
    path = tmp_path / f"{name}.py"
    path.write_text(text.replace(old, new))
    return load(path)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_example_stops_if_dropout_is_off(name, tmp_path):
    rates = ("0.7", "1.0") if name == "plain_jax" else ("0.3", "0.0")
    with pytest.raises(ValueError, match="two dropout keys give the same outputs"):
        changed(name, *rates, tmp_path).main(steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_divergence_falls_when_alpha_rises(name, tmp_path, capsys):
    found = []
    for alpha in ("alpha=0.1", "alpha=10.0"):
        old = "alpha: float = 1.0" if name == "nnx_mesh" else "alpha=1.0"
        new = alpha.replace("=", ": float = ") if name == "nnx_mesh" else alpha
        changed(name, old, new, tmp_path).main(steps=100)
        found.append(float(re.search(r"kl (\S+)", capsys.readouterr().out)[1]))
    assert found[0] > found[1] > 0


@pytest.mark.slow
def test_semi_supervised_beats_labels_alone():
    module = load(FOLDER / "semi_supervised.py")
    gains = [module.main(seed=s) - module.main(seed=s, alpha=0.0) for s in (0, 1)]
    assert sum(gains) > 0
