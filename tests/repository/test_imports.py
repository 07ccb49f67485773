"""Import costs, import directions, and the public face."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rdrop_jax
from rdrop_jax.tasks import TASKS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rdrop_jax"

# A module may import from its own level and those below; programs are on top.
LEVELS = [
    {"errors", "extras"},
    {"core"},
    {"config", "files", "versions"},
    {"models", "decoding"},
    {"data"},
    {"pretrained", "training"},
    {"tasks"},
    {"cli", "flags", "train", "evaluate", "predict", "prepare", "export", "compile"},
    {"compare"},
]
CORE_MAY_IMPORT = {"jax", "numpy", "optax", "jaxtyping", "rdrop_jax", "flax"}
HEAVY = ("jax", "flax", "tensorflow", "torch", "optax", "orbax", "grain", "numpy")


def timed(code):
    """Loaded heavy modules and seconds of the last statement, in a new process."""
    program = (
        "import sys, time\n"
        f"*before, last = {code!r}.split(';')\n"
        "for line in before: exec(line)\n"
        "start = time.perf_counter(); exec(last)\n"
        "print(time.perf_counter() - start)\n"
        f"print(*[m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    seconds, loaded = done.stdout.splitlines()
    return float(seconds), set(loaded.split())


def fastest(code):
    return min((timed(code) for _ in range(3)), key=lambda found: found[0])


def test_importing_the_package_loads_nothing():
    seconds, loaded = fastest("import rdrop_jax")
    assert not loaded
    assert seconds < 0.2


def test_importing_the_config_loads_no_jax():
    _, loaded = fastest("import rdrop_jax.config, rdrop_jax.flags, rdrop_jax.train")
    assert not loaded & {"jax", "flax", "tensorflow", "torch", "orbax", "grain"}


def test_a_comparison_and_its_workers_start_without_jax():
    _, loaded = fastest("import rdrop_jax.compare.worker, rdrop_jax.compare.comparison")
    assert not loaded & {"jax", "flax", "orbax", "grain"}


def test_the_loss_adds_little_to_jax():
    code = "import jax, jax.numpy;from rdrop_jax import rdrop_loss"
    seconds, loaded = fastest(code)
    assert not loaded & {"flax", "tensorflow", "torch", "orbax", "grain"}
    assert seconds < 0.2


def test_public_names():
    for name in rdrop_jax.__all__:
        assert getattr(rdrop_jax, name).__doc__, name
    assert set(rdrop_jax.__all__) <= set(dir(rdrop_jax))
    with pytest.raises(AttributeError, match="no attribute 'rdrop'"):
        _ = rdrop_jax.rdrop


def test_the_stub_names_what_the_package_resolves():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    named = {
        alias.name: node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(named) == set(rdrop_jax.__all__)
    for name, module in named.items():
        assert getattr(rdrop_jax, name).__module__ == module


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(module):
    return next(i for i, names in enumerate(LEVELS) if module in names)


def ours(names):
    return {
        name.split(".")[1]
        for name in names
        if (name.startswith("rdrop_jax.") and (PACKAGE / name.split(".")[1]).exists())
        or (
            name.startswith("rdrop_jax.")
            and (PACKAGE / f"{name.split('.')[1]}.py").exists()
        )
    }


def test_imports_go_one_way():
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for other in ours(imports(path)):
            assert level(other) <= level(own), f"{path} imports {other}"


def test_no_import_cycle_between_modules():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("rdrop_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
        graph[".".join(parts)] = set(imports(path))
    state = {}

    def visit(module, trail):
        assert state.get(module) != "open", f"cycle: {[*trail, module]}"
        if state.get(module) == "done":
            return
        state[module] = "open"
        for name in graph[module]:
            for found in (name, name.rsplit(".", 1)[0]):
                if found in graph and found != module:
                    visit(found, [*trail, module])
        state[module] = "done"

    for module in graph:
        visit(module, [])


def test_core_needs_nothing_but_jax():
    for path in (PACKAGE / "core").glob("*.py"):
        tops = {name.split(".")[0] for name in imports(path)}
        foreign = tops - CORE_MAY_IMPORT - set(sys.stdlib_module_names)
        assert not foreign, f"{path}: {foreign}"
        at_top = {
            name.split(".")[0]
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in imports_of(node)
        }
        assert "flax" not in at_top


def imports_of(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module]


def test_configs_import_the_config_alone():
    for path in (ROOT / "configs").glob("*.py"):
        tops = {name for name in imports(path) if name.startswith("rdrop_jax")}
        assert all(name.startswith("rdrop_jax.config") for name in tops)
        assert {n.split(".")[0] for n in imports(path)} <= {
            "rdrop_jax",
            "ml_collections",
        }


def test_sizes():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                described = doc.end_lineno - doc.lineno + 1 if doc else 0
                lines = node.end_lineno - node.lineno + 1 - described
                assert lines <= 70, f"{path}: {node.name}: {lines} lines of code"


SHARED = "rdrop_jax.tasks.seq2seq"


@pytest.mark.parametrize("task", TASKS)
def test_no_module_needs_a_task(task):
    """Deleting a task's folder and its line in TASKS breaks no import elsewhere."""
    folder = PACKAGE.parent / TASKS[task].replace(".", "/")
    for path in PACKAGE.rglob("*.py"):
        if folder not in path.parents:
            found = [
                name
                for name in imports(path)
                if f"{name}.".startswith(TASKS[task] + ".")
            ]
            assert not found, f"{path} imports {found}"


def test_shared_task_code_needs_no_task():
    for path in (PACKAGE / "tasks/seq2seq").glob("*.py"):
        for name in imports(path):
            own = not name.startswith("rdrop_jax.tasks.") or name.startswith(SHARED)
            assert own or (PACKAGE / f"tasks/{name.split('.')[2]}.py").exists(), path


def test_registered_tasks_are_the_folders():
    folders = {path.parent.name for path in (PACKAGE / "tasks").glob("*/task.py")}
    assert {name.split(".")[-1] for name in TASKS.values()} | {"seq2seq"} == folders


def test_packages_of_tasks_need_no_jax():
    names = ", ".join(TASKS.values())
    _, loaded = timed(f"import {names}")
    assert not loaded & {"jax", "flax", "tensorflow", "torch", "orbax", "grain"}


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_deleted_task_leaves_the_rest(task, tmp_path):
    shutil.copytree(
        PACKAGE,
        tmp_path / "rdrop_jax",
        ignore=shutil.ignore_patterns("__pycache__", TASKS[task].split(".")[-1]),
    )
    registry = tmp_path / "rdrop_jax/tasks/__init__.py"
    kept = [
        line
        for line in registry.read_text().splitlines(keepends=True)
        if f'"{task}": "{TASKS[task]}"' not in line
    ]
    assert len(kept) == len(registry.read_text().splitlines()) - 1
    registry.write_text("".join(kept))
    program = (
        "import importlib, pkgutil, rdrop_jax\n"
        "for found in pkgutil.walk_packages(rdrop_jax.__path__, 'rdrop_jax.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        "from rdrop_jax import tasks\n"
        "print(len(tasks.TASKS), len(tasks.recipes()) > 0, rdrop_jax.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = f"{len(TASKS) - 1} True {tmp_path / 'rdrop_jax' / '__init__.py'}"
    assert done.stdout.split("\n")[-2] == found
