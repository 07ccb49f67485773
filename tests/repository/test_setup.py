"""Setting up without venv, and with a Python that is too old."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci" / "make_venv"
STUB = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *version_info*) exit {version} ;;
  --version) echo "Python 3.8.1" ;;
  "-m venv "*) exit {venv} ;;
esac
"""


def setup(tmp_path, *, version=0, venv=0):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(STUB.format(log=log, version=version, venv=venv))
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", SCRIPT, python, tmp_path / "env"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done, log.read_text()


def test_venv_is_used_where_it_is(tmp_path):
    done, log = setup(tmp_path)
    assert done.returncode == 0
    assert "-m venv" in log
    assert "virtualenv" not in log


def test_virtualenv_stands_in_for_a_missing_venv(tmp_path):
    done, log = setup(tmp_path, venv=1)
    assert done.returncode == 0
    assert f"-m virtualenv --quiet {tmp_path}/env" in log


def test_another_python_is_named(tmp_path):
    done, log = setup(tmp_path, version=1)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "is Python 3.8.1" in done.stderr
    assert "venv" not in log
