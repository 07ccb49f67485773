"""The source distribution and the wheel: the package and its configs, no tests."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import rdrop_jax

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}('dist'))"
SOURCES = {
    path.relative_to(ROOT)
    for folder in ("rdrop_jax", "configs")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}


def test_tests_are_left_out():
    assert "prune tests\n" in (ROOT / "MANIFEST.in").read_text()


def built(kind, tmp_path):
    """Path of an sdist or wheel, built offline from a copy of the sources."""
    # An older setuptools cannot read the licence in pyproject.toml.
    pytest.importorskip("setuptools", "77", reason="needs setuptools 77 or newer")
    for name in ("rdrop_jax", "configs", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for file in ROOT.glob("*"):
        if file.is_file():
            shutil.copy(file, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "dist" / done.stdout.split()[-1]


def test_the_sdist_has_the_package_and_no_tests(tmp_path):
    with tarfile.open(built("sdist", tmp_path)) as archive:
        names = {Path(*Path(name).parts[1:]) for name in archive.getnames()}
    assert not [name for name in names if name.parts[:1] == ("tests",)]
    assert names >= SOURCES
    assert names >= {Path("LICENSE"), Path("NOTICE"), Path("README.md")}


def test_the_wheel_has_configs_templates_types_and_the_script(tmp_path):
    with zipfile.ZipFile(built("wheel", tmp_path)) as archive:
        names = {Path(name) for name in archive.namelist()}
        (info,) = {name.parts[0] for name in names if "dist-info" in name.parts[0]}
        script = archive.read(f"{info}/entry_points.txt").decode()
    moved = {"configs": Path("rdrop_jax/configs"), "rdrop_jax": Path("rdrop_jax")}
    wanted = {moved[path.parts[0]].joinpath(*path.parts[1:]) for path in SOURCES}
    assert {name for name in names if name.parts[0] != info} == wanted
    assert info == f"rdrop_jax-{rdrop_jax.__version__}.dist-info"
    assert "rdrop-jax = rdrop_jax.cli.main:main" in script
