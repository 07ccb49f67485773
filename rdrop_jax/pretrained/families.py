"""Model families that each task can be initialized from. Does not import jax."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.errors import InputError
from rdrop_jax.files import hub as hub_names
from rdrop_jax.pretrained import hub, text_encoders, weight_files
from rdrop_jax.training import workdir as workdir_lib

# Values of model_type in config.json that each task reads.
Families = Mapping[str, tuple[str, ...]]
_ENCODER = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
# Fields of the model and their names in config.json, by model_type.
_FIELDS = {
    "vit": _ENCODER | {"patch_size": "patch_size"},
    "dinov2": _ENCODER | {"patch_size": "patch_size"},
    **dict.fromkeys(text_encoders.FIXED, _ENCODER | text_encoders.FIELDS),
    "bart": {
        "encoder_layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "width": "d_model",
        "heads": "encoder_attention_heads",
        "mlp_width": "encoder_ffn_dim",
        "max_positions": "max_position_embeddings",
    },
    "marian": {
        "encoder_layers": "encoder_layers",
        "decoder_layers": "decoder_layers",
        "width": "d_model",
        "heads": "encoder_attention_heads",
        "mlp_width": "encoder_ffn_dim",
    },
}
# Fields of the model that model_type alone determines.
_VALUES: Mapping[str, Mapping[str, Any]] = {
    "marian": {
        "name": "marian",
        "size": "base",
        "share": "all",
        "pre_norm": False,
        "positions": "marian",
    }
}
_ACTIVATIONS = {"swish": "silu"}
# Name of the activation in config.json of families whose models have GELU alone.
_GELU = dict.fromkeys(("vit", "dinov2", *text_encoders.FIXED), "hidden_act")
_GELU["modernbert"] = "hidden_activation"
_GELU["bart"] = "activation_function"


def check_weights(
    config: ConfigDict,
    families: Families,
    workdir: Path | None = None,
    given: Collection[str] | None = None,
) -> ConfigDict:
    """Check ``init_from`` of a config by headers and sizes, before importing jax.

    Args:
      config: config of the run.
      families: model families by task.
      workdir: folder of the run, see `hub.located`.
      given: fields that the user sets; None if unknown.

    Returns:
      The config; fields of the model that the user does not set are those of the
      weights' config.json, or of the run in a workdir.

    Raises:
      InputError: the weights are missing, invalid, or of another model family, or a
        field that the user sets differs from theirs.
    """
    name = config.init_from
    named = hub_names.is_name(name)
    if config.task not in families and (named or weight_files.is_weights(Path(name))):
        raise only_workdirs(name)
    local = hub.located(config, workdir).init_from
    path = Path(local)
    if path.exists() and weight_files.is_weights(path):
        stored = weight_files.read_config(path)
        free = given is not None and "model.name" not in given
        _check_type(stored, config, families, free=free)
        weight_files.check_source(local)
        return _completed(config, stored, families[config.task], given)
    weight_files.check_source(local)
    return _like_run(config, given)


def _like_run(config: ConfigDict, given: Collection[str] | None) -> ConfigDict:
    """Fill in the fields of the model from the run whose workdir has the weights.

    The user's value is kept with ``reinit``, or if the run does not set the field. Then
    merging the weights compares shapes. Without ``given`` nothing is filled in.
    """
    run = workdir_lib.read(workdir_lib.split_checkpoint(config.init_from)[0])
    if given is None or run.task != config.task:
        return config
    fields = {name.removeprefix("model.") for name in workdir_lib.OF_WEIGHTS}
    wanted = {}
    for name in sorted(fields & {*run.model} & {*config.model}):
        kept = config.reinit or run.model[name] is None
        if not (kept and f"model.{name}" in given):
            wanted[name] = run.model[name]
    return _filled(config, wanted, given, "the run")


def _completed(
    config: ConfigDict,
    stored: Mapping[str, Any],
    own: tuple[str, ...],
    given: Collection[str] | None,
) -> ConfigDict:
    """Fill in the fields of the model from config.json."""
    model_type = stored.get("model_type")
    wanted = {
        name: stored[theirs]
        for name, theirs in _FIELDS.get(str(model_type), {}).items()
        if type(stored.get(theirs)) is int
    }
    wanted |= _VALUES.get(str(model_type), {})
    if model_type == "dinov2" and "width" in wanted:
        wanted["mlp_width"] = int(wanted["width"] * stored.get("mlp_ratio", 4))
        swiglu = stored.get("use_swiglu_ffn", False)
        wanted["activation"] = "swiglu" if swiglu else "gelu"
    if model_type == "marian":
        activation = stored.get("activation_function", "gelu")
        wanted["activation"] = _ACTIVATIONS.get(activation, activation)
    if model_type in text_encoders.FIXED:
        wanted |= text_encoders.fields(stored, config.init_from)
        if "model.pooling" in (given or ()):  # a choice, also with other weights
            wanted.pop("pooling", None)
    if len(own) > 1 and model_type in own:
        wanted["name"] = model_type
    return _filled(config, wanted, given, "config.json")


def _filled(
    config: ConfigDict,
    wanted: Mapping[str, Any],
    given: Collection[str] | None,
    source: str,
) -> ConfigDict:
    """Return a config with these fields of the model.

    Raises:
      InputError: the user sets another value.
    """
    model = config.model
    changed = {name: v for name, v in wanted.items() if model[name] != v}
    for name, value in changed.items():
        unset = model[name] is None if given is None else f"model.{name}" not in given
        if not unset:
            raise InputError(
                f"model.{name}: expected {value!r}, as in {source} of init_from="
                f"{config.init_from}, got {model[name]!r}. Remove this field, or use "
                "other weights"
            )
    if not changed:
        return config
    filled = config.copy_and_resolve_references().unlock()
    filled.model.update(changed)
    return filled.lock()


def only_workdirs(name: str) -> InputError:
    """Return the error of a task that only supports weights from workdirs."""
    return InputError(f"init_from: expected a workdir for this task, found {name}")


def _check_type(
    found: Mapping[str, Any], config: ConfigDict, families: Families, *, free: bool
) -> None:
    own, model_type = families[config.task], found.get("model_type")
    name = config.model.name
    wanted = own[0] if len(own) == 1 else name if name in own else ""
    same = model_type is None or not wanted or model_type == wanted
    if same or (free and model_type in own):
        field = _GELU.get(str(model_type), "")
        if found.get(field, "gelu") != "gelu":
            raise InputError(
                f"init_from: {config.init_from}: {field} of config.json: expected "
                f"gelu, got {found[field]!r}. Use weights with this activation."
            )
        return
    known = "; ".join(f"{task}: {', '.join(types)}" for task, types in families.items())
    remedy = f"Families that can be read: {known}."
    if model_type in own:
        remedy = f"Use a preset with model.name={model_type}, or weights of {wanted}."
    raise InputError(
        f"init_from: {config.init_from}: model_type of config.json: expected {wanted}, "
        f"got {model_type!r}. {remedy}"
    )
