"""One process of a comparison: a run from its start or where it stands, to its end.

python -m rdrop_jax.comparison.worker JSON; started by `rdrop_jax.compare` alone.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rdrop_jax import flags
from rdrop_jax import train as train_program
from rdrop_jax.data import ready
from rdrop_jax.pretrained import families
from rdrop_jax.runtime import versions


def work(job: Mapping[str, Any]) -> None:
    """Trains a run, and diagnoses it if it is one of those for the verdict.

    Args:
      job: ``config``, ``overrides``, ``workdir``, ``final``.
    """
    workdir = Path(job["workdir"])
    train_program.train(flags.load(job["config"], job["overrides"]), workdir)
    if job["final"]:
        from rdrop_jax.comparison import diagnostics

        if not diagnostics.done(workdir):
            diagnostics.diagnose(workdir)


def probe(job: Mapping[str, Any]) -> dict[str, Any]:
    """What only the task and the devices know.

    Args:
      job: ``config``, and ``probe``: overrides of every variant.

    Returns:
      ``steps_per_epoch`` of each variant, the names of ``scores``, ``data``, and the
      ``device``.

    Raises:
      InputError: data or weights that cannot be used.
    """
    configs = [flags.load(job["config"], each) for each in job["probe"]]
    configs = [ready.completed(config) for config in configs]
    for config in configs:
        if config.init_from:
            families.check(config)
    from rdrop_jax import tasks

    built = [tasks.build(config) for config in configs]
    return {
        "steps_per_epoch": [task.train_data().steps_per_epoch for task in built],
        "scores": list(built[0].scores),
        "data": built[0].provenance(),
        "device": versions.devices(),
    }


def _end_with_parent() -> None:
    """Ends this process once the other end of its standard input is closed."""

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: Sequence[str]) -> None:
    """Does the job that the first argument describes."""
    job = json.loads(argv[0])
    if "probe" in job:
        print(json.dumps(probe(job)), flush=True)
    else:
        _end_with_parent()
        work(job)


if __name__ == "__main__":
    flags.run(main)
