"""The source distribution: the package and its configs, without tests."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"


def test_tests_are_left_out():
    assert "prune tests\n" in (ROOT / "MANIFEST.in").read_text()


def test_the_sdist_has_the_package_and_no_tests(tmp_path):
    # An older setuptools cannot read the licence in pyproject.toml.
    pytest.importorskip("setuptools", "77")
    for name in ("rdrop_jax", "configs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for file in ROOT.glob("*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BUILD],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "dist" / done.stdout.split()[-1]) as archive:
        names = [Path(*Path(name).parts[1:]) for name in archive.getnames()]
    assert not [name for name in names if name.parts[:1] == ("tests",)]
    sources = {
        path.relative_to(ROOT)
        for folder in ("rdrop_jax", "configs")
        for path in (ROOT / folder).rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    templates = (ROOT / "rdrop_jax" / "compare" / "templates").iterdir()
    sources |= {path.relative_to(ROOT) for path in templates if path.is_file()}
    assert sources <= set(names)
    assert {Path("LICENSE"), Path("NOTICE"), Path("README.md")} <= set(names)
