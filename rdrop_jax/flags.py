"""Configs from files, presets and overrides: ``load(spec, overrides)``."""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli.flags import load as load
    from rdrop_jax.cli.flags import show as show
