"""Fields that must be equal when a run resumes and on all processes of a run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.config.fields import flatten
from rdrop_jax.versions import versions

# Fields that may differ when a run is resumed.
FREE_ON_RESUME = (
    "total_steps",
    "log.",
    "eval.every",
    "eval.batch_size",
    "eval.patience",
    "eval.test",
    "checkpoint.",
    "mesh.",
    "data.prefetch",
    "data.workers",
    "data.dir",
    "eval.mode",  # only in runs of earlier versions; now the score determines it
)
# Fields that may differ between the processes of a run.
_PER_PROCESS = ("data.dir", "data.prefetch", "data.workers")


def differences(
    stored: Mapping[str, Any] | ConfigDict,
    config: Mapping[str, Any] | ConfigDict,
    free: tuple[str, ...] = FREE_ON_RESUME,
) -> list[str]:
    """Return one line per field that differs from that of a workdir.

    Args:
      stored: fields of the workdir.
      config: present fields.
      free: prefixes of names that may differ; by default those of a resumed run.
    """
    old, new = flatten(stored), flatten(config)
    missing = object()
    return [
        f"{name}: workdir {old.get(name, '(absent)')!r}, now "
        f"{new.get(name, '(absent)')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
        and not name.startswith(free)
    ]


def shared(config: ConfigDict) -> dict[str, Any]:
    """Return the values that must be equal on all processes of a run.

    Returns:
      The config fields except those that may differ per process, versions of packages
      used for computation, and a checksum of this package's code.
    """
    package = Path(__file__).parents[1]
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.read_bytes())
    fields = {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(_PER_PROCESS)
    }
    found = versions()
    del found["python"]  # may differ
    found = {f"version of {name}": text for name, text in found.items()}
    return fields | found | {"code of rdrop_jax": code.hexdigest()[:12]}
