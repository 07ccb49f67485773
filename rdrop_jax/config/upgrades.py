"""Configs of earlier versions: renamed and added fields, and changed defaults."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.config.fields import (
    DURATIONS,
    base_config,
    batch_field,
    flatten,
    optional,
)
from rdrop_jax.errors import InputError

# Renamed fields of all tasks: old name to present name.
_RENAMED_EVERYWHERE = {"log.tensorboard": "log.trackers"}
# Values of log.tensorboard, also as text of the command line, and of log.trackers.
_TRACKERS = {True: ["tensorboard"], "true": "tensorboard", "1": "tensorboard"}
_TRACKERS |= {False: [], "false": "()", "0": "()"}
# Renamed fields by task: old name to present name.
RENAMED = {
    "image_classification": {"model.variant": "model.size"},
    "text_classification": {
        "data.held_out": "data.validation",
        "model.variant": "model.size",
    },
    "translation": {"batch_size": "batch_tokens"},
    "summarization": {"batch_size": "batch_tokens"},
}
# Values of model.name in version 0.1, by task: present name and size.
_SEQ2SEQ = {
    "transformer_iwslt_de_en": ("transformer", "iwslt_de_en"),
    "transformer_vaswani_wmt_en_de_big": ("transformer", "vaswani_wmt_en_de_big"),
    "bart.base": ("bart", "base"),
    "bart.large": ("bart", "large"),
}
RENAMED_MODELS = {
    "translation": _SEQ2SEQ,
    "summarization": _SEQ2SEQ,
    "language_model": {
        "mini": ("transformer", "mini"),
        "transformer_lm_gpt": ("transformer", "gpt"),
        "adaptive_mini": ("adaptive_transformer", "mini"),
        "transformer_lm_wiki103": ("adaptive_transformer", "wiki103"),
    },
}
# Fields whose defaults changed after version 0.1 in presets for user data.
NEW_DEFAULTS = (
    "total_steps",
    *("rdrop.alpha", "model.dropout", "model.size", "model.width", "model.heads"),
    *("model.mlp_width", "model.encoder_layers", "model.decoder_layers"),
    *("data.vocab_size", "optimizer.name", "optimizer.lr", "optimizer.end_lr"),
    *("optimizer.weight_decay", "optimizer.decay", "optimizer.clip"),
)
# Fields that name data and weights, which later presets name on the Hub.
NAMES = (
    *("init_from", "data.name", "data.files.test", "data.columns.text"),
    *("data.columns.text_b", "data.columns.source", "data.columns.target"),
    *("data.moses", "eval.bleu"),
)
_FOLDS = {"data.folds": 0, "data.fold": 0, "data.columns.group": ""}
# Fields added since earlier versions, to all tasks and by task, with the value of the
# old behavior; a type stands for an optional field that is None.
ADDED_EVERYWHERE: dict[str, Any] = {
    "rdrop.views": "none",
    "rdrop.views_rate": float,
    "model.remat_policy": "nothing_saveable",
    "model.fused_attention": False,
}
ADDED: dict[str, dict[str, Any]] = {
    "image_classification": _FOLDS
    | {"model.drop_path": 0.0, "model.activation": "gelu"}
    | {
        f"data.{group}.{name}": ""
        for group, names in (
            ("columns", ("image", "label")),
            ("files", ("train", "validation", "test")),
        )
        for name in names
    },
    "text_classification": {
        **_FOLDS,
        "data.validation": 0.0,
        "data.test": 0.0,
        "data.quoting": "none",
        "model.pad_id": int,
        "model.position_buckets": 256,
        "model.conv_kernel": 0,
        "model.pooling": "cls",
        "model.global_every": 3,
        "model.local_window": 128,
        "model.global_theta": 160000.0,
        "model.local_theta": 10000.0,
    },
    "translation": {
        "data.validation": float,
        "data.test": float,
        "data.quoting": "none",
    },
    "language_model": {
        "data.validation": float,
        "data.test": float,
        "data.columns.text": "text",
    },
    "summarization": {
        "data.validation": float,
        "data.test": float,
        "data.quoting": "none",
        "eval.rouge_tokenizer": "english",
    },
}


def renamed(task: str, fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rename fields of earlier versions.

    Args:
      task: ``config.task``.
      fields: values by name, as ``{"data.held_out": 500}``. If an old and its new name
        occur, the later one counts.

    Returns:
      The values by present names, and one note for each old name.
    """
    names = _renames(task)
    found: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in fields.items():
        new = names.get(name, name)
        if name == "log.tensorboard" and isinstance(value, bool | str):
            value = _TRACKERS.get(
                value.lower() if isinstance(value, str) else value, value
            )
        found[new] = value
        if new != name:
            notes.append(f"{name}: deprecated, use {new}")
    models = RENAMED_MODELS.get(task, {})
    old = found.get("model.name")
    if isinstance(old, str) and old in models:
        found["model.name"], found["model.size"] = models[old]
        notes.append(
            f"model.name={old}: deprecated, use model.name={found['model.name']} and "
            f"model.size={found['model.size']}"
        )
    return found, notes


def _renames(task: str) -> dict[str, str]:
    return _RENAMED_EVERYWHERE | RENAMED.get(task, {})


def added_fields(task: str) -> dict[str, Any]:
    """Return the fields that earlier versions lacked; see `ADDED`."""
    return ADDED_EVERYWHERE | ADDED.get(task, {})


def upgrade(config: ConfigDict) -> list[str]:
    """Change a config of an earlier version in place to the present fields.

    Returns:
      One note for each old name.

    Raises:
      InputError: the value of an old name has another type than the present field.
    """
    task, old, base = config.get("task", ""), flatten(config), flatten(base_config())
    names = _renames(task)
    # A default of the base config beside the new field was not set.
    unset = {
        n for n in names if names[n] in old and n in base and old.get(n) == base[n]
    }
    # Old names last: in a file that extends a preset they replace its values.
    fields = sorted(old.items(), key=lambda field: field[0] in names)
    new, notes = renamed(task, {n: x for n, x in fields if n not in unset})
    added = {n: x for n, x in added_fields(task).items() if n not in old}
    with config.unlocked():
        for name in old.keys() - new.keys():
            group, _, leaf = name.rpartition(".")
            del (config[group] if group else config)[leaf]
        for name in added:
            group = config
            for part in name.split(".")[:-1]:
                if part not in group:
                    group[part] = ConfigDict()
                group = group[part]
        config.update_from_flattened_dict({n: optional(x) for n, x in added.items()})
        changed = {n: x for n, x in new.items() if n not in old or old[n] != x}
        for name, value in changed.items():
            try:
                config.update_from_flattened_dict({name: value})
            except TypeError as error:
                group, _, leaf = name.rpartition(".")
                kind = (config[group] if group else config).get_type(leaf)
                raise InputError(
                    f"{name}: expected {kind.__name__}, got {value!r:.60}"
                ) from error
    return notes


def unlike_base(stored: Mapping[str, Any]) -> str:
    """Return why a stored config cannot be the config of a run; "" if it can.

    Fields of the base config are compared by type, because programs read them before
    a task checks its fields.
    """
    if dotted := [name for name in _names(stored) if "." in name]:
        return f"a name with a dot, {dotted[0]!r:.60}"
    base, flat = flatten(base_config()), flatten(stored)
    if not (task := flat.get("task")):
        return "no task"
    flat, _ = renamed(task if isinstance(task, str) else "", flat)
    base[batch_field(flat)] = base.pop("batch_size")
    flat = {name: base[name] for name in ADDED_EVERYWHERE} | flat
    missing = [name for name in base if name not in flat]
    if missing:
        return f"no {', '.join(missing[:5])}"
    for name, default in base.items():
        value = flat[name]
        if default is None or name in DURATIONS:
            fits = value is None or isinstance(value, int | float | str)
        elif isinstance(default, float):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        else:
            fits = type(value) is type(default)
        if not fits:
            return f"{name}: {value!r:.60} in place of {type(default).__name__}"
    return _misplaced(stored, task)


def _names(stored: Mapping[str, Any]) -> Iterator[str]:
    for name, value in stored.items():
        yield name
        if isinstance(value, Mapping):
            yield from _names(value)


def _misplaced(stored: Mapping[str, Any], task: str) -> str:
    """Describe a group in place of a value, or a value in place of a group, or "".

    Only names that `upgrade` writes are compared.
    """
    sizes = ["model.size"] if task in RENAMED_MODELS else []
    for name in (*added_fields(task), *_renames(task).values(), *sizes):
        node: Any = stored
        parts = name.split(".")
        for i, part in enumerate(parts, 1):
            if not isinstance(node, Mapping):
                return f"{'.'.join(parts[: i - 1])}: {node!r:.60} in place of a group"
            node = node.get(part, {} if i < len(parts) else None)
        if isinstance(node, Mapping):
            return f"{name}: {node!r:.60} in place of a value"
    return ""
