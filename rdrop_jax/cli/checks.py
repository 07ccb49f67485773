"""Config checks that require neither jax nor data."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import tasks
from rdrop_jax.config import batch_field, flatten, resolve
from rdrop_jax.core import options
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths, roots
from rdrop_jax.tasks.field_checks import views_rate


def _one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
    return lambda v: v in allowed, f"one of {', '.join(allowed)}"


_POSITIVE = (lambda v: v >= 1, "at least 1")
_NOT_NEGATIVE = (lambda v: v >= 0, "at least 0")
_FINITE = (lambda v: 0 <= v < math.inf, "a finite number, at least 0")
_FRACTION = (lambda v: 0 <= v < 1, "in [0, 1)")
# jax's integers have 32 bits; seeds of its keys have 63.
_MAX_INT, _MAX_SEED = 2**31 - 1, 2**63 - 1
_SEED = (lambda v: 0 <= v <= _MAX_SEED, f"from 0 to {_MAX_SEED}")
# Each one takes a thread or a batch in memory.
_THREADS = (lambda v: 0 <= v <= 4096, "from 0 to 4096")
_TRACKERS = ("tensorboard", "wandb", "mlflow")
_AXIS = (lambda v: v >= 1 or v == -1, "at least 1, or -1 for all remaining devices")

# Presets that read the user's data.
_PRESETS = {
    "image_classification": ("vit.py:folder",),
    "text_classification": ("glue.py:files", "glue.py:words"),
    "translation": ("nmt.py:files",),
    "summarization": ("summarization.py:files",),
    "language_model": ("lm.py:files",),
}

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _SEED,
    "data.split_seed": _SEED,
    "accum_steps": _POSITIVE,
    "rdrop.alpha": _FINITE,
    "rdrop.num_passes": (lambda v: v is None or v >= 1, "none, or at least 1"),
    "rdrop.every": _POSITIVE,
    "rdrop.views_rate": (lambda v: v is None or 0 < v < 1, "none, or in (0, 1)"),
    "rdrop.label_smoothing": _FRACTION,
    "rdrop.smoothing": _one_of(*options.SMOOTHINGS),
    "rdrop.divergence": _one_of(*options.DIVERGENCES),
    "rdrop.stop_gradient": _one_of(*options.STOP_GRADIENTS),
    "rdrop.objective_scale": _one_of(*options.OBJECTIVE_SCALES),
    "rdrop.how": _one_of(*options.HOW),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.remat_policy": _one_of(*options.REMAT_POLICIES),
    "model.masks": _one_of(*options.MASKS),
    "data.prefetch": _THREADS,
    "data.workers": _THREADS,
    "optimizer.name": _one_of("adam", "adamw", "sgd", "nag"),
    "optimizer.schedule": _one_of(
        "constant",
        "linear",
        "cosine",
        "polynomial",
        "inverse_sqrt",
        "cosine_restarts",
    ),
    "optimizer.lr": _FINITE,
    "optimizer.end_lr": _FINITE,
    "optimizer.warmup_init": _FINITE,
    "optimizer.b1": _FRACTION,
    "optimizer.b2": _FRACTION,
    "optimizer.eps": _FINITE,
    "optimizer.momentum": _FRACTION,
    "optimizer.weight_decay": _FINITE,
    "optimizer.decay": _one_of("all", "matrices"),
    "optimizer.layer_decay": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "optimizer.clip": _FINITE,
    "optimizer.power": _FINITE,
    "optimizer.shrink": _FINITE,
    "optimizer.ema": _FRACTION,
    "optimizer.period_mult": (
        lambda v: 1 <= v < math.inf,
        "a finite number, at least 1",
    ),
    "eval.batch_size": _POSITIVE,
    "eval.patience": _NOT_NEGATIVE,
    "checkpoint.keep": (lambda v: v >= 2, "at least 2"),
    "log.trackers": (
        lambda v: all(name in _TRACKERS for name in v),
        f"names of {', '.join(_TRACKERS)}",
    ),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
}


def check_values(config: ConfigDict) -> None:
    """Check all values that can be checked without data or devices.

    Raises:
      InputError: an invalid value; the message names the field.
    """
    paths.check_config(config)
    flat = flatten(config)
    batch = batch_field(config)
    for name, (accepts, expected) in {**CHECKS, batch: _POSITIVE}.items():
        if not accepts(flat[name]):
            raise InputError(f"{name}: expected {expected}, found {flat[name]!r}")
    for name, value in flat.items():
        limit = _MAX_SEED if name.endswith("seed") else _MAX_INT
        if type(value) is int and abs(value) > limit:
            raise InputError(
                f"{name}: expected an integer from {-limit} to {limit}, found {value}"
            )
    resolve(config, steps_per_epoch=1.0)  # checks the form of durations
    if config[batch] % config.accum_steps:
        raise InputError(
            f"accum_steps: expected a divisor of {batch}={config[batch]}, found "
            f"{config.accum_steps}"
        )
    if config.model.fused_attention and config.model.dtype == "float32":
        raise InputError(
            "model.fused_attention: expected false with model.dtype=float32, got true. "
            "Set model.dtype=bfloat16"
        )
    if config.reinit and not config.init_from:
        raise InputError(
            f"reinit: expected none without init_from, got {config.reinit!r}. Set "
            "init_from"
        )
    dropouts = {
        name: value
        for name, value in flat.items()
        if name.startswith("model.") and "drop" in name and type(value) in (int, float)
    }
    for name, rate in dropouts.items():
        if not 0 <= rate < 1:
            raise InputError(f"{name}: expected in [0, 1), found {rate}")
    _check_passes(config, dropouts)
    kl = config.rdrop.divergence.endswith("_kl")
    if config.rdrop.stop_gradient == "targets" and not kl:
        raise InputError(
            "rdrop.stop_gradient: expected none where rdrop.divergence="
            f"{config.rdrop.divergence}, which has no target, found targets"
        )


def _check_passes(config: ConfigDict, dropouts: Mapping[str, float]) -> None:
    passes, rates = config.rdrop.num_passes, tuple(config.rdrop.dropouts)
    numbers = all(type(rate) in (int, float) and 0 <= rate < 1 for rate in rates)
    if rates and (passes == 1 or len(rates) != (passes or 2) or not numbers):
        one_each = f"a rate in [0, 1) for each of {passes or 2} passes, or ()"
        expected = "() for one pass" if passes == 1 else one_each
        raise InputError(f"rdrop.dropouts: expected {expected}, found {rates}")
    if rates and config.rdrop.how == "vmap":
        raise InputError(
            "rdrop.how: expected auto or unroll if rdrop.dropouts sets the rate of "
            "each pass, got vmap"
        )
    if config.rdrop.views != "none":
        if not tasks.is_file(config.task):
            views = getattr(tasks.package(config.task), "VIEWS", {})
            views_rate(config.rdrop, views)
        _check_simcut(config.rdrop)
        return
    if config.rdrop.views_rate is not None:
        raise InputError(
            "rdrop.views_rate: expected none without rdrop.views, got "
            f"{config.rdrop.views_rate}. Set rdrop.views"
        )
    others = [v for k, v in dropouts.items() if k != "model.dropout" or not rates]
    # The dropout of the user's own model may have no field: the first step finds out.
    none = bool(dropouts) and not any([*others, *rates])
    if config.rdrop.alpha > 0 and passes != 1 and none:
        raise InputError(
            f"rdrop.alpha={config.rdrop.alpha} needs dropout: expected one of "
            f"{', '.join([*dropouts, 'rdrop.dropouts'])} above 0, found all 0. Set one "
            "of them, or train without R-Drop with rdrop.alpha=0: without dropout both "
            "passes are equal"
        )


def _check_simcut(r: ConfigDict) -> None:
    """Check that R-Drop options fit SimCut, whose passes have different roles."""
    if r.views != "simcut":
        return
    for field, value, allowed in (
        ("num_passes", r.num_passes, (None, 1, 2)),
        ("divergence", r.divergence, ("forward_kl", "symmetric_kl")),
        ("how", r.how, ("auto", "unroll")),
    ):
        if value not in allowed:
            names = " or ".join(str(x).lower() for x in allowed)
            raise InputError(
                f"rdrop.{field}: expected {names} with rdrop.views=simcut, found "
                f"{value}"
            )


def check_data_fields(config: ConfigDict, given: Collection[str]) -> None:
    """Reject names of the user's data if the run would train on an embedded dataset.

    Args:
      config: config with the overrides applied.
      given: fields that the command line sets.

    Raises:
      InputError: such a field is set.
    """
    name, presets = config.data.name, _PRESETS.get(config.task)
    if presets is None or name not in roots.EMBEDDED:  # a user's task may read them
        return
    values = flatten(config)
    for field in given:
        own = field.startswith(("data.dir", "data.files.", "data.columns."))
        if own and values[field]:
            raise InputError(
                f"{field}: expected none with data.name={name}, which has no files, "
                f"got {values[field]}. Choose a preset for your data, such as "
                f"{' or '.join(presets)}"
            )


def check_sizes(config: ConfigDict, given: Collection[str]) -> None:
    """Reject an explicit held-out size together with a file.

    A file takes precedence over a size that only the preset sets.

    Args:
      config: config with the overrides applied.
      given: fields that the command line sets.

    Raises:
      InputError: both fields are set; the message names them.
    """
    if config.data.name != "files" or "files" not in config.data:
        return
    data = config.data.copy_and_resolve_references().unlock()
    for split in ("validation", "test"):
        if f"data.{split}" not in given:
            data[split] = 0.0
    roots.check_sizes(data)
