"""docs/extending.md adds a dataset, a model and a task in the places that it names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.compile(r"<!-- (\w+): (\S+) ?(\w*) -->\n```python\n(.*?)```", re.DOTALL)


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def extend(title, root):
    """Apply the blocks of a section to a copy; return new files and added lines."""
    new, lines = [], []
    for what, path, name, code in BLOCKS.findall(section(title)):
        file = root / path
        if what == "file":
            assert not file.exists(), file
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
            new.append(path)
        elif what == "line":
            assert code.count("\n") == 1
            text, start = file.read_text(), f"{name} = {{\n"
            assert text.count(start) == 1
            file.write_text(text.replace(start, start + code))
            lines.append(path)
        else:
            text, last = file.read_text(), "def get_config("
            assert text.count(last) == 1
            file.write_text(text.replace(last, f"{code}\n\n{last}"))
    return new, lines


@pytest.fixture
def copy(tmp_path):
    for name in ("rdrop_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def env(root):
    return os.environ | {"PYTHONPATH": str(root)}


def train(root, *argv):
    done = subprocess.run(
        [sys.executable, "-m", "rdrop_jax.train", "--workdir", "run", *argv],
        cwd=root,
        env=env(root),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((root / "run/result.json").read_text())


TINY = [
    "--config.total_steps=2",
    "--config.eval.every=2",
    "--config.checkpoint.every=2",
]


@pytest.mark.slow  # the section adds no code; test_own_files trains on such files
def test_a_dataset_is_a_config_value(copy):
    assert extend("A dataset", copy) == ([], [])
    lines = [
        "review\tstars",
        *(f"good film {i}\tfive\nbad film {i}\tone" for i in range(40)),
    ]
    (copy / "reviews.tsv").write_text("\n".join(lines) + "\n")
    result = train(
        copy,
        *("--config", "configs/glue.py:reviews", "--config.data.dir=."),
        *(*TINY, "--config.init_from=", "--config.batch_size=8"),
        *("--config.model.layers=1", "--config.model.width=16"),
        *("--config.model.heads=2", "--config.model.mlp_width=16"),
        *("--config.model.vocab_size=200", "--config.data.max_length=16"),
    )
    assert result["step"] == 2


@pytest.mark.slow
def test_a_model_is_two_files_and_a_line(copy):
    new, lines = extend("A model", copy)
    assert (len(new), len(lines)) == (2, 1)
    mixer = ["--config", "configs/vit.py", "--config.model.name=mixer", *TINY]
    mixer += [f"--config.model.{x}=16" for x in ("width", "mlp_width")]
    mixer.append("--config.model.layers=1")
    result = train(copy, *mixer)
    assert result["step"] == 2
    program = (
        "from pathlib import Path; from rdrop_jax.export import export\n"
        "export(Path('run'), Path('out'), format='npz')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, env=env(copy))
    assert done.returncode == 0
    shutil.rmtree(copy / "run")
    again = train(
        copy, *mixer, "--config.model.mlp_width=16", "--config.init_from=out/model.npz"
    )
    assert again["step"] == 2


def test_a_task_is_a_folder_and_a_line(copy):
    new, lines = extend("A task", copy)
    assert {Path(path).parent.as_posix() for path in new} == {
        "rdrop_jax/tasks/vectors",
        "configs",
    }
    assert len(lines) == 1
    result = train(copy, "--config", "configs/vectors.py")
    assert result["step"] == 20
    assert result["validation"]["loss"] < 10
