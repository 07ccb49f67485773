"""Versions and devices, for results and logs. Imports jax inside functions only."""

import platform
from collections.abc import Sequence
from importlib import metadata

import rdrop_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, rdrop_jax and installed packages.

    Args:
      packages: names of distributions.
    """
    own = {"python": platform.python_version(), "rdrop_jax": rdrop_jax.__version__}
    return own | {name: metadata.version(name) for name in packages}


def devices() -> str:
    """Return number, type and platform of all devices, such as ``1 x cpu (cpu)``."""
    import jax

    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"
