"""Every example runs as a user runs it, and learns."""

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
EXAMPLES = [path for path in EXAMPLES if path.stem != "spoken_digits"]  # needs data


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path):
    if path.stem == "equinox_mlp":
        pytest.importorskip("equinox", reason="equinox is in the extra dev")
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if path.stem == "semi_supervised":
        assert module.main(steps=150) > 0.8  # of 2,000, for the time
    elif path.stem == "nnx_vit":
        assert module.main(steps=60) > 0.6  # of 300
    else:
        assert module.main() > 0.85
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.slow
def test_semi_supervised_beats_labels_alone():
    path = next(p for p in EXAMPLES if p.stem == "semi_supervised")
    spec = importlib.util.spec_from_file_location("semi", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    gains = [module.main(seed=s) - module.main(seed=s, alpha=0.0) for s in (0, 1)]
    assert sum(gains) > 0
