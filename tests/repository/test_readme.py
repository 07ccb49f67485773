"""The README's code runs as printed."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import toy

import rdrop_jax

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", TEXT, re.DOTALL))


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = nn.Dropout(0.5)(nn.tanh(nn.Dense(8)(x)), deterministic=not train)
        return nn.Dense(3)(h)


class NnxModel(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(5, 8, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5)
        self.out = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def __call__(self, x, *, rngs=None):
        return self.out(self.dropout(nnx.tanh(self.hidden(x)), rngs=rngs))


def namespace(name):
    batch = toy.batch()
    names = {
        "rdrop_jax": rdrop_jax,
        "jax": jax,
        "x": batch["x"],
        "labels": batch["label"],
        "key": jax.random.key(0),
        "tx": optax.adam(1e-3),
    }
    if name == "plain":
        names["params"] = toy.params()
        names["apply"] = lambda params, x, key: toy.forward(params, {"x": x}, key)
    elif name == "linen":
        model = names["model"] = LinenModel()
        variables = model.init(jax.random.key(0), batch["x"], train=False)
        names["params"] = variables["params"]
    elif name == "nnx":
        names["model"] = NnxModel()
    elif name == "equinox":
        eqx = pytest.importorskip("equinox", reason="equinox is in the extra dev")

        class Model(eqx.Module):
            layer: eqx.nn.Linear
            dropout: eqx.nn.Dropout

            def __call__(self, x, key):
                return self.layer(self.dropout(x, key=key))

        layer = eqx.nn.Linear(5, 3, key=jax.random.key(0))
        names["model"] = Model(layer, eqx.nn.Dropout(0.5))
    return names


@pytest.mark.parametrize("name", ["plain", "linen", "nnx", "equinox"])
def test_code_block(name):
    names = namespace(name)
    exec(BLOCKS[name], names)
    metrics = names["metrics"]
    assert float(metrics["kl"].compute()) > 0
    assert np.isfinite(float(metrics["ce"].compute()))
    assert len([line for line in BLOCKS[name].splitlines() if line]) <= 5


def test_every_marked_block_is_run():
    assert set(BLOCKS) == {"plain", "linen", "nnx", "equinox"}


def test_files_and_commands_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target
    for program in re.findall(r"python -m (rdrop_jax\.\w+)", TEXT):
        path = ROOT / program.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    makefile = (ROOT / "Makefile").read_text()
    for goal in re.findall(r"^    make ([\w-]+)", TEXT, re.MULTILINE):
        assert f"\n{goal}:" in makefile
