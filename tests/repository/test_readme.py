"""The code in README and docs/frameworks.md runs as printed."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import toy

import rdrop_jax
from rdrop_jax import train

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("frameworks", "hardware", "profiling")),
]
TEXT = PAGES[0].read_text()
BLOCKS = {
    name: code
    for page in PAGES
    for name, code in re.findall(
        r"<!-- run: (\w+) -->\n```python\n(.*?)```", page.read_text(), re.DOTALL
    )
}


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = nn.Dropout(0.5)(nn.tanh(nn.Dense(8)(x)), deterministic=not train)
        return nn.Dense(3)(h)


class NnxModel(nnx.Module):
    def __init__(self):
        self.hidden = nnx.Linear(5, 8, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(2))
        self.out = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.out(self.dropout(nnx.tanh(self.hidden(x))))


def namespace(name):
    batch = toy.batch()
    names = {
        "rdrop_jax": rdrop_jax,
        "jax": jax,
        "jnp": jnp,
        "nnx": nnx,
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
    elif name.startswith("nnx"):
        model = names["model"] = NnxModel()
        names["optimizer"] = nnx.Optimizer(model, names["tx"], wrt=nnx.Param)
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


def test_the_loss_before_and_after():
    names, batch, model = {}, toy.batch(), NnxModel()
    exec(BLOCKS["loop"], names)
    x, labels = batch["x"], batch["label"]
    loss, metrics = names["loss_after"](model, x, labels)
    ce, kl = float(metrics["ce"]), float(metrics["kl"])
    assert kl > 0
    assert float(loss) == pytest.approx(2 * ce + kl, rel=1e-5)
    model.eval()  # without dropout, both passes have the loss before
    after, _ = names["loss_after"](model, x, labels)
    assert float(after) == pytest.approx(
        2 * float(names["loss_before"](model, x, labels))
    )
    assert len([line for line in BLOCKS["loop"].splitlines() if line]) == 8


@pytest.mark.parametrize("name", ["plain", "linen", "nnx", "nnx_calls", "equinox"])
def test_code_block(name):
    names = namespace(name)
    exec(BLOCKS[name], names)
    metrics = names["metrics"]
    assert float(metrics["kl"].compute()) > 0
    assert np.isfinite(float(metrics["ce"].compute()))
    assert len([line for line in BLOCKS[name].splitlines() if line]) <= 5


def test_every_marked_block_is_run():
    assert set(BLOCKS) == {"loop", "plain", "linen", "nnx", "nnx_calls", "equinox"}


def test_length():
    assert len(TEXT.splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_sections_that_are_linked_exist(page):
    for target, _, section in re.findall(
        r"\]\(([^)#:]+)(#([\w-]+))?\)", page.read_text()
    ):
        path = page.parent / target
        assert path.exists(), target
        if section:
            titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w -]", "", s).lower().replace(" ", "-") for s in titles
            ]
            assert section in slugs, target


def test_commands_exist():
    for program in re.findall(r"(?:python -m rdrop_jax\.|rdrop-jax )(\w+)", TEXT):
        path = ROOT / "rdrop_jax" / program
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    for goal in re.findall(r"^    make ([\w-]+)", TEXT, re.MULTILINE):
        assert f"\n{goal}:" in (ROOT / "Makefile").read_text()


def test_figures_are_in_the_documentation():
    docs = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    for figure in ("3.35", "2.06", "+0.2 to +2.3", "-5.4", "-1.1"):
        assert figure in TEXT
        assert figure in docs


def train_commands():
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lists = re.findall(r"command: \[(.*?)\]", text, re.DOTALL)
        for words in lists:
            text += " ".join(words.replace(",", "").split()) + "\n"
        for command in re.findall(
            r"(?:rdrop_jax\.train,?|rdrop-jax train)( --.*)", text
        ):
            command = re.split("[`#]", command)[0]
            found.append(command.replace('"$JOB_COMPLETION_INDEX"', "1"))
    return [c for c in found if not c.endswith(",")]


@pytest.mark.parametrize("command", train_commands())
def test_train_command_is_accepted(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    argv = [word.strip('"') for word in command.split()]
    train.main([*argv, "--print_config"])
    assert "  task = " in capsys.readouterr().out
