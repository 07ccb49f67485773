"""Versions and devices, for results and logs. Imports jax inside functions only."""

import platform

import rdrop_jax

# Packages used for computation.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python, rdrop_jax and the packages of the table."""
    from importlib import metadata  # slow to import

    own = {"python": platform.python_version(), "rdrop_jax": rdrop_jax.__version__}
    return own | {name: metadata.version(name) for name in PACKAGES}


def devices() -> str:
    """Return number, type and platform of all devices, such as ``1 x cpu (cpu)``."""
    import jax

    first = jax.devices()[0]
    return f"{jax.device_count()} x {first.device_kind} ({first.platform})"
