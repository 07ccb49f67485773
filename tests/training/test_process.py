"""What programs set at their start, and that nobody else does."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from rdrop_jax.cli import process

ROOT = Path(__file__).parents[2]
VARIABLES = [
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
]


def run(code, **env):
    base = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=base | env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_allocator_is_tuned_unless_told_otherwise():
    code = "from rdrop_jax.cli.process import tune_allocator as t; print(t())"
    assert run(code) == "True"
    assert run(code, RDROP_ALLOCATOR="default") == "False"


def test_the_cache_goes_where_the_user_says(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process.use_compilation_cache()
    chosen = Path(os.environ[VARIABLES[0]])
    assert chosen.parent == tmp_path / "rdrop_jax"
    monkeypatch.setenv(VARIABLES[0], "elsewhere")
    process.use_compilation_cache()
    assert os.environ[VARIABLES[0]] == "elsewhere"


def test_a_program_keeps_what_it_compiled(tmp_path):
    code = (
        "from rdrop_jax.cli import process\n"
        "def main(argv):\n"
        "    import jax\n"
        "    jax.jit(lambda x: x * 2)(1.0).block_until_ready()\n"
        "process.run(main)"
    )
    run(code, XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.glob("rdrop_jax/*/jit_*"))


def test_importing_the_library_sets_nothing():
    code = (
        "import os, rdrop_jax, rdrop_jax.core.train_step; "
        f"print([n for n in {VARIABLES} if n in os.environ])"
    )
    assert run(code) == "[]"
