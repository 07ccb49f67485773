"""Strict JAX for every test: 8 simulated CPU devices, no rank promotion."""

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.experimental
import jaxtyping
import pytest

ROOT = Path(__file__).parent.parent

# Tests train the same tiny models over and over: compile each of them once, also in
# the processes that tests start.
CACHE = {
    "jax_compilation_cache_dir": str(ROOT / ".pytest_cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_traceback_in_locations_limit": 0,  # less to lower
}
for name, value in CACHE.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)
# Faster compilation of slower machine code: tests compile much and compute little.
# Without the fusion emitters, a train step compiles in under half the CPU time.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # jaxlib 0.12 ends at this flag
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()

# A collection walks all programs of all tests so far: fewer of them.
gc.set_threshold(20_000, 20, 50)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Names of newer jax that tests use.
if not hasattr(jax, "P"):
    jax.P = jax.sharding.PartitionSpec
if not hasattr(jax, "enable_x64"):
    jax.enable_x64 = jax.experimental.enable_x64
if not hasattr(jax, "set_mesh"):
    jax.set_mesh = jax.sharding.use_mesh


@pytest.fixture(scope="session", autouse=True)
def console_messages():
    """Prints messages as the programs do, if what they need is installed."""
    if importlib.util.find_spec("ml_collections") is None:
        yield
        return
    from rdrop_jax.cli import process  # after jaxtyping's import hook

    with process.console_messages():
        yield


@pytest.fixture(scope="session", autouse=True)
def whole_arrays():
    """Saves each array as a whole, in half the time of an eighth from each device."""
    if importlib.util.find_spec("orbax") is None:
        yield
        return
    from orbax.checkpoint import type_handlers

    handler = type_handlers.get_type_handler(jax.Array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handler, "_use_replica_parallel", False)
        yield


@pytest.fixture
def checked_shard_map():
    """Skips a test where jax is too old for loops in a shard_map with check_vma."""
    if jax.__version_info__ < (0, 7):
        pytest.skip("before jax 0.7, shard_map needs check_vma=False")


@pytest.fixture
def no_shape_types():
    """Lets wrong shapes reach the library's own checks, as they do for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Workdir and output of a finished run of tests/helpers/programs.py.

    The modules that the program has loaded are listed in a file beside the workdir.
    """
    from helpers.programs import train_argv

    workdir = tmp_path_factory.mktemp("run")
    program = (
        "import atexit, pathlib, runpy, sys;"
        "path = pathlib.Path(sys.argv.pop(1));"
        "atexit.register(lambda: path.write_text(' '.join([*sys.modules])));"
        "runpy.run_module('rdrop_jax.train', run_name='__main__', alter_sys=True)"
    )
    argv = [sys.executable, "-u", "-c", program, f"{workdir}.modules"]
    argv += map(str, train_argv(workdir))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout, done.stderr


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Workdir and result of a finished run of tests/helpers/tiny.py."""
    from helpers.tiny import train  # needs what the extra train brings

    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(workdir)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback that the clients for datasets and weights use."""
    from helpers.hub import Hub, forget, use_datasets  # needs the extra hub

    with Hub().serve() as served:
        use_datasets(monkeypatch, served, tmp_path / "home")
        yield served
    forget()
