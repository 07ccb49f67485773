"""Worker process of a comparison, which starts or resumes one run and completes it.

python -m rdrop_jax.compare.worker JSON; only `rdrop_jax.compare` starts it.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax import tasks, versions
from rdrop_jax.cli import flags, process
from rdrop_jax.cli import train as train_program
from rdrop_jax.pretrained import families, hub


def train_and_diagnose(job: Mapping[str, Any]) -> None:
    """Train a run; if it is a final run, also compute its diagnostics.

    Args:
      job: dict with ``config``, ``overrides``, ``workdir`` and ``final``.
    """
    workdir = Path(job["workdir"])
    given = job["overrides"]
    train_program.train(flags.load(job["config"], given), workdir, given=given)
    if job["final"] and not (workdir / "diagnostics.json").is_file():
        from rdrop_jax.compare import diagnostics

        diagnostics.diagnose(workdir)


def command(job: Mapping[str, Any]) -> list[str]:
    """Return the command line of `rdrop_jax.train` that trains a run by itself."""
    fields = [f"--config.{name}={text}" for name, text in job["overrides"].items()]
    return ["train.py", "--config", job["config"], "--workdir", job["workdir"], *fields]


def probe(job: Mapping[str, Any]) -> dict[str, Any]:
    """Collect facts that require the data and the devices.

    Args:
      job: dict with ``config`` and ``probe``, the overrides of every variant.

    Returns:
      ``steps_per_epoch`` of each variant, names of ``scores`` and ``splits``, checksums
      of ``data``, and the ``device``.

    Raises:
      InputError: unusable data or weights.
    """
    built = []
    for overrides in job["probe"]:
        config = tasks.check_data(flags.load(job["config"], overrides))
        if config.init_from:
            config = families.check_weights(config, tasks.families(), given=overrides)
        built.append(tasks.build(hub.located(config)))
    return {
        "steps_per_epoch": [task.train_data().steps_per_epoch for task in built],
        "scores": list(built[0].scores),
        "splits": list(built[0].evaluators),
        "data": built[0].provenance(),
        "device": versions.devices(),
    }


def _end_with_parent() -> None:
    """Exit this process once its standard input is closed."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str]) -> None:
    """Run the job that the first argument specifies."""
    job = json.loads(argv[0])
    if "probe" in job:
        print(json.dumps(probe(job)), flush=True)
    else:
        _end_with_parent()
        sys.argv = command(job)  # for result.json and the model card
        train_and_diagnose(job)


if __name__ == "__main__":
    process.run(main)
