"""Config fields that all tasks share, with defaults; presets; flat names."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

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
# Optional fields of ``model`` that replace a depth or width of ``model.size``.
SIZES = ("layers", "encoder_layers", "decoder_layers", "width", "heads", "mlp_width")
# Default and meaning of each field. A type stands for an optional field that is None.
FIELDS: dict[str, tuple[Any, str]] = {
    "task": ("", "name in rdrop_jax.tasks, or a Python file with build(config)"),
    "seed": (0, "parameters, dropout and data order"),
    "total_steps": (1000, "optimizer steps"),
    "batch_size": (64, "rows per step, over all devices; or batch_tokens instead"),
    "accum_steps": (1, "microbatches per step; divides the batch"),
    "init_from": ("", "weights: workdir, WORKDIR:STEP, file, folder or hf:ORG/NAME"),
    "reinit": ("", 'parts to re-initialize, such as "head" or "head,norm"'),
    "rdrop.alpha": (1.0, "weight of the consistency term; 0: plain training"),
    "rdrop.alpha_warmup": (0, "alpha rises linearly over these steps"),
    "rdrop.num_passes": (int, "none: 1 for alpha 0, else 2"),
    "rdrop.every": (1, "m: R-Drop on every m-th step, one plain pass on other steps"),
    "rdrop.dropouts": ((), "model.dropout per pass, as (0.1, 0.3); empty: the same"),
    "rdrop.views": ("none", "augmentation of each pass: docs/method.md"),
    "rdrop.views_rate": (float, "its strength; none: see docs/method.md"),
    "rdrop.label_smoothing": (0.0, "epsilon in [0, 1)"),
    "rdrop.smoothing": ("uniform", 'epsilon / V, or "fairseq": epsilon / (V - 1)'),
    "rdrop.divergence": ("symmetric_kl", "or forward_kl, reverse_kl, js, squared"),
    "rdrop.stop_gradient": ("none", 'or "targets": p is fixed in each KL(p || q)'),
    "rdrop.objective_scale": ("sum", 'as in the paper; "mean" divides by num_passes'),
    "rdrop.how": ("auto", "unroll on CPU, vmap elsewhere"),
    "model.name": ("", "architecture"),
    "model.dtype": ("float32", "dtype of activations; parameters and losses: float32"),
    "model.remat": (False, "recompute activations in the backward pass"),
    "model.remat_policy": ("nothing_saveable", "policy of remat: docs/performance.md"),
    "model.fused_attention": (False, "cuDNN's attention: docs/hardware.md"),
    "model.masks": ("hash", 'dropout masks; or "bernoulli": jax.random\'s, far slower'),
    "data.name": ("", "dataset"),
    "data.dir": ("", "folder of the dataset; empty: $RDROP_DATA_DIR"),
    "data.split_seed": (0, "seed of held-out splits; independent of seed"),
    "data.prefetch": (2, "batches prepared ahead, each in a separate thread"),
    "data.workers": (0, "threads that load images; 0: use the prefetch threads"),
    "optimizer.name": ("adam", "adam or adamw (the same), sgd, nag"),
    "optimizer.lr": (1e-3, "peak learning rate"),
    "optimizer.schedule": (
        "constant",
        "constant, linear, polynomial, cosine, inverse_sqrt, cosine_restarts",
    ),
    "optimizer.warmup": (0, "linear warmup"),
    "optimizer.warmup_init": (0.0, "learning rate at step 0 of the warmup"),
    "optimizer.end_lr": (0.0, "final learning rate of decaying schedules"),
    "optimizer.power": (1.0, "exponent of the polynomial schedule"),
    "optimizer.period": (0, "first period of cosine_restarts"),
    "optimizer.period_mult": (1.0, "ratio of the lengths of successive periods"),
    "optimizer.shrink": (1.0, "ratio of the learning rates of successive periods"),
    "optimizer.b1": (0.9, "adam"),
    "optimizer.b2": (0.999, "adam"),
    "optimizer.eps": (1e-8, "adam"),
    "optimizer.momentum": (0.9, "sgd, nag"),
    "optimizer.weight_decay": (0.0, "decoupled"),
    "optimizer.decay": ("all", 'or "matrices": no biases, no norm scales'),
    "optimizer.layer_decay": (1.0, "layer-wise learning-rate decay factor; 1: off"),
    "optimizer.clip": (0.0, "maximum global gradient norm; 0: off"),
    "optimizer.ema": (0.0, "decay of the parameter average for evaluation; 0: off"),
    "eval.every": ("1 epochs", "interval of validations"),
    "eval.batch_size": (256, "rows per batch in evaluation"),
    "eval.metric": ("", "score that selects the best checkpoint"),
    "eval.patience": (0, "validations without improvement before stopping; 0: never"),
    "eval.test": (True, "score test data at the end; False: do not read them"),
    "checkpoint.every": ("1 epochs", "also saves each new best validation"),
    "checkpoint.keep": (2, "newest checkpoints to keep, in addition to the best"),
    "log.every": (50, 'also accepts "30 seconds" (approximate)'),
    "log.trackers": (("tensorboard",), 'also "wandb" and "mlflow"; (): none'),
    "mesh.data": (-1, "devices that shard the batch; -1: all remaining"),
    "mesh.fsdp": (1, "devices that shard the batch and the parameters"),
    "mesh.tensor": (1, "devices that shard matrices"),
}


def duration(value: int | str) -> FieldReference:
    """Return a field for a number of steps that also accepts "20 epochs" or "5%"."""
    return FieldReference(value, field_type=object)


def base_config() -> ConfigDict:
    """Return the shared fields. The config file of a task adds fields and locks all."""
    config = ConfigDict()
    for name, (default, _) in FIELDS.items():
        group, _, leaf = name.rpartition(".")
        if group and group not in config:
            config[group] = ConfigDict()
        value = duration(default) if name in DURATIONS else optional(default)
        (config[group] if group else config)[leaf] = value
    return config


def optional(default: Any) -> Any:
    """Return a field of the type ``default`` that is None; else the default itself."""
    return placeholder(default) if isinstance(default, type) else default


def batch_field(config: Mapping[str, Any] | ConfigDict) -> str:
    """Return the name of the field that counts a batch, in rows or in tokens."""
    return "batch_tokens" if "batch_tokens" in config else "batch_size"


def field_help() -> str:
    """Return a line ``name = default  # meaning`` for each field of `base_config`."""
    values = flatten(base_config())
    return "\n".join(
        f"  --config.{name} = {values[name]!r}  # {meaning}"
        for name, (_, meaning) in FIELDS.items()
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
