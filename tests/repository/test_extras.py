"""Declared dependencies are the imported ones; a missing extra is named."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import rdrop_jax
from rdrop_jax import extras

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rdrop_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAME = {
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "rouge-score": "rouge_score",
    "scikit-learn": "sklearn",
    "tensorflow-cpu": "tensorflow",
    "tensorflow-datasets": "tensorflow_datasets",
}
# tensorflow-datasets imports these, or downloads with them.
OF_TENSORFLOW_DATASETS = {"h5py", "importlib_resources", "tensorflow"}


def declared(requirements):
    """Import names of requirements, without those that name this project's extras."""
    names = [re.split(r"[\[<>=; ]", text)[0] for text in requirements]
    return {IMPORT_NAME.get(name, name) for name in names if name != "rdrop-jax"}


BASE = declared(PROJECT["dependencies"])
EXTRAS = {
    name: declared(found) - BASE
    for name, found in PROJECT["optional-dependencies"].items()
}


def imported(*folders):
    tops = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    tops |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    tops.add(node.module.split(".")[0])
    return tops - sys.stdlib_module_names - {"rdrop_jax", "configs"}


def test_base_install_is_what_core_imports():
    assert {"jax", "jaxtyping", "numpy", "optax"} == BASE
    assert imported("rdrop_jax/core") - {"flax"} == BASE


def test_every_import_is_declared_and_every_dependency_is_imported():
    found = imported("rdrop_jax", "configs")
    names = ("train", "hub", "report", "wandb", "mlflow", "prepare")
    programs = set().union(*(EXTRAS[name] for name in names))
    assert found - BASE - programs == {"jaxlib"}  # jax brings it
    assert programs - found <= OF_TENSORFLOW_DATASETS
    assert EXTRAS["bench"] <= imported("benchmarks")


def test_the_table_names_the_extra_that_brings_a_package():
    for name, extra in extras.EXTRA_OF.items():
        assert name in EXTRAS[extra], name
    brought = {*extras.EXTRA_OF, "jaxlib"}  # jax brings it
    assert imported("rdrop_jax", "configs") - BASE <= brought


def test_the_oldest_versions_are_the_lower_bounds():
    script = (ROOT / ".ci" / "test_versions").read_text()
    oldest = re.search('^oldest="(.*)"$', script, re.M)[1].split()
    bounds = dict(text.split(">=") for text in PROJECT["dependencies"])
    assert set(bounds) == {text.split("==")[0] for text in oldest}
    for text in oldest:
        name, version = text.split("==")
        assert f"{version}.".startswith(f"{bounds[name]}."), name


def test_the_version_of_the_citation_is_the_package_s():
    assert PROJECT["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {rdrop_jax.__version__}\n" in citation


def test_extras_name_only_extras_that_exist():
    for found in PROJECT["optional-dependencies"].values():
        for text in found:
            if text.startswith("rdrop-jax["):
                names = text.removeprefix("rdrop-jax[").rstrip("]").split(",")
                assert set(names) <= set(EXTRAS)


def test_the_command_fits_a_clone_and_a_wheel(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert extras.install("train") == 'pip install -e ".[train]"'
    monkeypatch.chdir(tmp_path)
    assert extras.install("hub") == f'pip install -e "{ROOT}[hub]"'
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "rdrop_jax" / "extras.py"))
    found = extras.missing("jinja2.sandbox", "train", "report")
    assert found == (
        'jinja2 is not installed. Run `pip install "rdrop-jax[train,report]"`.'
    )
    assert 'Run `pip install "rdrop-jax[hub]"`' in extras.missing("pyarrow", "train")


def test_only_failed_imports_of_optional_packages_are_explained():
    with (
        pytest.raises(ModuleNotFoundError, match=r"Run `pip install .*\[hub\]"),
        extras.explained("rdrop_jax.train", "train"),
    ):
        raise ModuleNotFoundError(name="pyarrow.parquet")
    with (
        pytest.raises(ModuleNotFoundError, match="nothing of ours"),
        extras.explained("__main__", "train"),
    ):
        raise ModuleNotFoundError("nothing of ours", name="nowhere")


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = {argv!r}
{start}
"""
MODULE = "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
SCRIPT = "from rdrop_jax.cli.main import main; main()"


def without(names, argv, start):
    code = WITHOUT.format(names=names, argv=argv, start=start)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("train", "train"),
        ("evaluate", "train"),
        ("predict", "train"),
        ("prepare", "train"),
        ("export", "train"),
        ("compare", "train,report"),
    ],
)
def test_a_program_on_the_base_install_names_the_command(program, wanted):
    names = set(extras.EXTRA_OF)
    line = f'. Run `pip install -e ".[{wanted}]"`.\n'
    module = MODULE.format(module=f"rdrop_jax.{program}")
    code, err = without(names, [program], module)
    assert (code, err.count("\n")) == (2, 1), err
    assert err.startswith("error: ")
    assert err.endswith(line)
    assert without(names, ["rdrop-jax", program], SCRIPT) == (code, err)


def test_one_missing_package_names_all_extras_of_the_program():
    argv = ["rdrop-jax", "compare", "--help"]
    code, err = without({"jinja2"}, argv, SCRIPT)
    assert code == 2
    assert err == (
        'error: jinja2 is not installed. Run `pip install -e ".[train,report]"`.\n'
    )
