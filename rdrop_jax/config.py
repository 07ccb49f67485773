"""Shared configuration fields and their defaults."""

import difflib
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

import rdrop_jax
from rdrop_jax.errors import InputError

# Fields that accept a number of steps, "20 epochs", or "5%" of total_steps.
DURATIONS = (
    "total_steps",
    "rdrop.alpha_warmup",
    "optimizer.warmup",
    "optimizer.period",
    "eval.every",
    "checkpoint.every",
    "log.every",
)
# Fields that may differ when a run is resumed.
FREE_ON_RESUME = (
    "total_steps",
    "log.",
    "eval.every",
    "eval.batch_size",
    "eval.patience",
    "checkpoint.",
    "mesh.",
    "data.prefetch",
    "data.workers",
    "data.dir",
    "eval.mode",  # only in runs of earlier versions; now the score determines it
)
# Fields that may differ between the processes of a run.
_PER_PROCESS = ("data.dir", "data.prefetch", "data.workers")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Renamed fields by task: old name to present name.
RENAMED = {"text_classification": {"data.held_out": "data.validation"}}
# Fields whose defaults changed after version 0.1 in presets for user data.
NEW_DEFAULTS = (
    "total_steps",
    *("rdrop.alpha", "model.dropout", "model.variant", "model.width", "model.heads"),
    *("model.mlp_width", "model.encoder_layers", "model.decoder_layers"),
    *("data.vocab_size", "optimizer.name", "optimizer.lr", "optimizer.end_lr"),
    *("optimizer.weight_decay", "optimizer.decay", "optimizer.clip"),
)
# Fields added since earlier versions, by task, with the value of the old behavior.
ADDED: dict[str, dict[str, Any]] = {
    "text_classification": {"data.validation": 0.0, "data.test": 0.0},
    "translation": {"data.validation": None, "data.test": None},
    "language_model": {"data.validation": None, "data.test": None},
    "summarization": {
        "data.validation": None,
        "data.test": None,
        "eval.rouge_tokenizer": "english",
    },
}
# log.every also accepts seconds.
_SECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:s|seconds?)")
_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)?")


def duration(value: int | str) -> FieldReference:
    """Return a field for a number of steps that also accepts "20 epochs" or "5%"."""
    return FieldReference(value, field_type=object)


def base_config() -> ConfigDict:
    """Return the shared fields. The config file of a task adds fields and locks all."""
    c = ConfigDict()
    c.task = ""  # builder in rdrop_jax.tasks
    c.seed = 0  # parameters, dropout and data order
    c.total_steps = duration(1000)  # optimizer steps
    c.batch_size = 64  # rows per step, over all devices
    c.accum_steps = 1  # microbatches per step; divides batch_size
    c.init_from = ""  # weights: a workdir, WORKDIR:STEP, file, folder or hf:ORG/NAME
    c.reinit = ""  # parts to re-initialize, such as "head" or "head,norm"

    c.rdrop = ConfigDict()
    c.rdrop.alpha = 1.0  # weight of the consistency term; 0: plain training
    c.rdrop.alpha_warmup = duration(0)  # alpha rises linearly over these steps
    c.rdrop.num_passes = placeholder(int)  # none: 1 for alpha 0, else 2
    c.rdrop.every = 1  # m: R-Drop on every m-th step, one plain pass on other steps
    c.rdrop.dropouts = ()  # model.dropout per pass, as (0.1, 0.3); empty: the same
    c.rdrop.label_smoothing = 0.0  # epsilon in [0, 1)
    c.rdrop.smoothing = "uniform"  # epsilon / V, or "fairseq": epsilon / (V - 1)
    c.rdrop.divergence = "symmetric_kl"  # or forward_kl, reverse_kl, js, squared
    c.rdrop.stop_gradient = "none"  # or "targets": p is fixed in each KL(p || q)
    c.rdrop.objective_scale = "sum"  # as in the paper; "mean" divides by num_passes
    c.rdrop.how = "auto"  # unroll on CPU, vmap elsewhere

    c.model = ConfigDict()
    c.model.name = ""  # architecture
    c.model.dtype = "float32"  # dtype of activations; parameters and losses: float32
    c.model.remat = False  # recompute activations in the backward pass
    c.model.masks = "hash"  # dropout masks; or "bernoulli": jax.random's, far slower

    c.data = ConfigDict()
    c.data.name = ""  # dataset
    c.data.dir = ""  # folder of the dataset; empty: $RDROP_DATA_DIR
    c.data.split_seed = 0  # seed of held-out splits; independent of seed
    c.data.prefetch = 2  # batches prepared ahead, each in a separate thread
    c.data.workers = 0  # threads that load rows; 0: use the prefetch threads

    c.optimizer = ConfigDict()
    c.optimizer.name = "adam"  # adam or adamw (the same), sgd, nag
    c.optimizer.lr = 1e-3  # peak learning rate
    c.optimizer.schedule = "constant"  # see rdrop_jax.training.optim.make_schedule
    c.optimizer.warmup = duration(0)  # linear warmup
    c.optimizer.warmup_init = 0.0  # learning rate at step 0 of the warmup
    c.optimizer.end_lr = 0.0  # final learning rate of decaying schedules
    c.optimizer.power = 1.0  # exponent of the polynomial schedule
    c.optimizer.period = duration(0)  # first period of cosine_restarts
    c.optimizer.period_mult = 1.0  # ratio of the lengths of successive periods
    c.optimizer.shrink = 1.0  # ratio of the learning rates of successive periods
    c.optimizer.b1 = 0.9  # adam
    c.optimizer.b2 = 0.999  # adam
    c.optimizer.eps = 1e-8  # adam
    c.optimizer.momentum = 0.9  # sgd, nag
    c.optimizer.weight_decay = 0.0  # decoupled
    c.optimizer.decay = "all"  # or "matrices": no biases, no norm scales
    c.optimizer.layer_decay = 1.0  # layer-wise learning-rate decay factor; 1: off
    c.optimizer.clip = 0.0  # maximum global gradient norm; 0: off
    c.optimizer.ema = 0.0  # decay of the parameter average for evaluation; 0: off

    c.eval = ConfigDict()
    c.eval.every = duration("1 epochs")  # interval of validations
    c.eval.batch_size = 256
    c.eval.metric = ""  # score that selects the best checkpoint
    c.eval.patience = 0  # validations without improvement before stopping; 0: never
    c.eval.test = True  # score test data at the end; False: do not read them

    c.checkpoint = ConfigDict()
    c.checkpoint.every = duration("1 epochs")  # also saves each new best validation
    c.checkpoint.keep = 2  # newest checkpoints to keep, in addition to the best

    c.log = ConfigDict()
    c.log.every = duration(50)  # also accepts "30 seconds" (approximate)
    c.log.tensorboard = True

    c.mesh = ConfigDict()  # devices per axis; -1: all remaining devices
    c.mesh.data = -1  # shards the batch
    c.mesh.fsdp = 1  # shards batch and parameters
    c.mesh.tensor = 1  # shards matrices
    return c


def field_help() -> str:
    """Return a line ``name = default  # comment`` for each field of `base_config`."""
    source = inspect.getsource(base_config)
    fields = re.findall(r"^    c\.([\w.]+ = (?!ConfigDict).*)$", source, re.M)
    shown = [re.sub(r"duration\((.*?)\)", r"\1", field) for field in fields]
    return "\n".join(
        f"  --config.{s.replace('placeholder(int)', 'None')}" for s in shown
    )


def finish(config: ConfigDict) -> ConfigDict:
    """Lock a config once its file has added all fields, so that typos raise."""
    return config.lock()


def pick(presets: Mapping[str, Callable[[], ConfigDict]], name: str) -> ConfigDict:
    """Return the config of a preset; an unknown name raises an `InputError`."""
    if name not in presets:
        hint = suggest(name, presets)
        raise InputError(
            f"preset {name!r}: no such preset.{hint} There are: {', '.join(presets)}"
        )
    return finish(presets[name]())


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean a or b?``; "" without a similar name."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    last = word.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == last]
    leaves = {k.rsplit(".", 1)[-1]: k for k in known}
    near = [
        leaves[x] for x in difflib.get_close_matches(last, leaves, n=1, cutoff=0.75)
    ]
    found = list(dict.fromkeys([*same_leaf, *close, *near]))[:2]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Flatten a config to ``{"rdrop.alpha": 1.0, ...}``, tuples as lists as in JSON."""
    flat: dict[str, Any] = {}
    for name in config:
        value = config[name]
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade the stored config of a workdir to the fields of the present version."""
    task = stored["task"]
    config = {
        name: dict(part) if isinstance(part, Mapping) else part
        for name, part in stored.items()
    }
    for old, new in RENAMED.get(task, {}).items():
        group, _, name = old.partition(".")
        value = config.get(group, {}).pop(name, None)
        if value is not None:
            config[group][new.removeprefix(f"{group}.")] = float(value)
    for added, value in ADDED.get(task, {}).items():
        group, _, name = added.partition(".")
        config.setdefault(group, {}).setdefault(name, value)
    return config


def differences(
    stored: Mapping[str, Any] | ConfigDict, config: ConfigDict
) -> list[str]:
    """Return one line per differing field that must be the same to resume a run."""
    old, new = flatten(stored), flatten(config)
    missing = object()
    return [
        f"{name}: workdir {old.get(name, '(absent)')!r}, now "
        f"{new.get(name, '(absent)')!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
        and not name.startswith(FREE_ON_RESUME)
    ]


def shared(config: ConfigDict) -> dict[str, Any]:
    """Return the values that must be equal on all processes of a run.

    Returns:
      The config fields except those that may differ per process, versions of packages
      used for computation, and a checksum of this package's code.
    """
    from importlib import metadata  # slow to import; used only with several processes

    package = Path(__file__).parent
    code = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        code.update(file.read_bytes())
    fields = {
        name: value
        for name, value in flatten(config).items()
        if not name.startswith(_PER_PROCESS)
    }
    versions = {f"version of {name}": metadata.version(name) for name in _PACKAGES}
    versions["version of rdrop_jax"] = rdrop_jax.__version__
    return fields | versions | {"code of rdrop_jax": code.hexdigest()[:12]}


def unlike_base(stored: Mapping[str, Any]) -> str:
    """Return why a stored config cannot be the config of a run; "" if it can.

    Fields of the base config are compared by type, because programs read them before
    a task checks its fields.
    """
    base, flat = flatten(base_config()), flatten(stored)
    if not flat.get("task"):
        return "no task"
    missing = [name for name in base if name not in flat]
    if missing:
        return f"no {', '.join(missing[:5])}"
    for name, default in base.items():
        value = flat[name]
        if default is None or name in DURATIONS:
            fits = value is None or isinstance(value, int | str)
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = type(value) is type(default)
        if not fits:
            return f"{name}: {value!r:.60} in place of {type(default).__name__}"
    return ""


def to_steps(
    name: str, value: int | str, steps_per_epoch: float, total_steps: int | None = None
) -> int:
    """Convert a duration to steps.

    Args:
      name: name of the field, for messages.
      value: number of steps, "20 epochs", or "5%".
      steps_per_epoch: steps per epoch of the training data.
      total_steps: number of steps that a percentage refers to.

    Returns:
      An integer number of steps; at least 1 if the duration is not 0.

    Raises:
      InputError: not a duration.
    """
    match = _UNIT.fullmatch(str(value).strip())
    percent = match is not None and match[2] == "%"
    if match is None or (percent and total_steps is None) or isinstance(value, bool):
        allowed = "steps or 'N epochs'" + ("" if total_steps is None else " or 'N%'")
        allowed += " or 'N seconds'" if name == "log.every" else ""
        raise InputError(f"{name}: expected {allowed}, found {value!r}")
    number, unit = float(match[1]), match[2] or "steps"
    if unit.startswith("epoch"):
        number *= steps_per_epoch
    elif percent:
        number *= (total_steps or 0) / 100
    if number >= 2**31:  # jax counts steps in 32 bits
        raise InputError(
            f"{name}: expected fewer than {2**31} steps, found {value!s:.40}"
        )
    if unit.startswith("step") and number != int(number):
        raise InputError(f"{name}: expected whole steps, found {value!r}")
    return max(1, round(number)) if number else 0


def log_seconds(value: int | str) -> float:
    """Return the seconds of ``log.every="30 seconds"``; 0 for a number of steps."""
    match = _SECONDS.fullmatch(str(value).strip())
    return float(match[1]) if match else 0.0


def resolve(config: ConfigDict, steps_per_epoch: float) -> ConfigDict:
    """Return a frozen copy with all durations in steps, except seconds in log.every."""
    resolved = config.copy_and_resolve_references().unlock()
    flat = flatten(resolved)
    total = to_steps("total_steps", flat["total_steps"], steps_per_epoch)
    if total < 1:
        raise InputError(f"total_steps: expected at least 1, found {total}")
    timed = log_seconds(flat["log.every"]) > 0
    kept = {"total_steps"} | ({"log.every"} if timed else set())
    others = [name for name in DURATIONS if name not in kept]
    steps = {n: to_steps(n, flat[n], steps_per_epoch, total) for n in others}
    with resolved.ignore_type():
        resolved.update_from_flattened_dict({"total_steps": total} | steps)
    return resolved.lock()
