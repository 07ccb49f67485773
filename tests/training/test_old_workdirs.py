"""Workdirs of version 0.1 resume with the same bits, for every task."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.programs import ROOT, run

from rdrop_jax.tasks import TASKS

# The last commit before the package was reorganized.
OLD = "73f28312fae8"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Finished workdirs of all tasks, trained by the code of commit `OLD`."""
    folder = tmp_path_factory.mktemp("old")
    archive = folder / "source.tar"
    done = subprocess.run(
        ["git", "-C", ROOT, "archive", "--output", archive, OLD], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"needs commit {OLD} of the repository, which this clone lacks")
    source = folder / "source"
    with tarfile.open(archive) as files:
        files.extractall(source, filter="data")
    script = ROOT / "tests/helpers/old_runs.py"
    done = subprocess.run(
        [sys.executable, script, source, folder / "runs"],
        cwd=source,
        env=os.environ | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs"

    return os.environ | {"PYTHONPATH": str(source)}


def arrays(workdir, step):
    """All arrays of a checkpoint: parameters, optimizer state, key and step."""
    folder = workdir / "checkpoints" / f"step_{step}"
    inner = [f for f in folder.iterdir() if (f / "_METADATA").exists()]
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore((inner or [folder])[0])


def bits(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("task", TASKS)
def test_a_workdir_of_version_0_1_resumes_with_the_same_bits(task, old, tmp_path):
    finished, workdir = old / task, tmp_path / "resumed"
    shutil.copytree(finished, workdir)
    for step in (6, 8):
        shutil.rmtree(workdir / "checkpoints" / f"step_{step}")
    (workdir / "result.json").unlink()
    stored = json.loads(finished.with_suffix(".json").read_text())
    code, _, err = run(
        "train",
        *("--config", f"configs/{stored['spec']}", "--workdir", workdir),
        *(f"--config.{name}={value}" for name, value in stored["overrides"].items()),
    )
    assert code == 0, err
    ours, theirs = (jax.tree.leaves(arrays(w, 8)) for w in (workdir, finished))
    assert len(ours) == len(theirs) > 50
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(bits(a), bits(b))
    results = [json.loads((w / "result.json").read_text()) for w in (workdir, finished)]
    for name in ("step", "checkpoint_step", "validation", "test"):
        assert results[0][name] == results[1][name], name
    # Version 0.1 recorded some files with their full path.
    new, recorded = (
        {os.path.basename(k): x for k, x in r["data"].items()} for r in results
    )
    assert new == recorded
