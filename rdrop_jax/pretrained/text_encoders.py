"""Fields of text encoders in config.json, and those that have one value here."""

import json
from collections.abc import Mapping
from typing import Any

from rdrop_jax.errors import InputError

_ROWS = "max_position_embeddings"
# Fields of the model and their names in config.json.
FIELDS = {
    "vocab_size": "vocab_size",
    "max_positions": _ROWS,
    "position_buckets": "position_buckets",
    "conv_kernel": "conv_kernel_size",
}
# By model_type: the value that a field must have, which an export contains, and its
# value in transformers if it is absent.
FIXED: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "mpnet": {"relative_attention_num_buckets": (32, 32)},
    "deberta-v2": {
        "relative_attention": (True, False),
        "pos_att_type": (["p2c", "c2p"], []),
        "share_att_key": (True, False),
        "norm_rel_ebd": ("layer_norm", "none"),
        "position_biased_input": (False, True),
        "type_vocab_size": (0, 0),
        "conv_groups": (1, 1),
        "max_relative_positions": (-1, -1),
        "pooler_hidden_act": ("gelu", "gelu"),
        "pooler_dropout": (0, 0),
    },
    "modernbert": {
        "norm_bias": (False, False),
        "attention_bias": (False, False),
        "mlp_bias": (False, False),
        "classifier_bias": (False, False),
        "classifier_activation": ("gelu", "gelu"),
        "rope_scaling": (None, None),
    },
}


# Fields of ModernBERT's pattern of layers and their names in config.json.
PATTERN = {
    "global_every": "global_attn_every_n_layers",
    "local_window": "local_attention",
    "global_theta": "global_rope_theta",
    "local_theta": "local_rope_theta",
}


def fields(stored: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return fields of the model that do not have the same value in config.json.

    Args:
      stored: content of config.json, whose model_type is in `FIXED`.
      place: path of the weights, for messages.

    Raises:
      InputError: a field has a value with which the model would compute other outputs.
    """
    model_type = stored["model_type"]
    for name, (wanted, default) in FIXED[model_type].items():
        found = stored.get(name, default)
        if name == "pos_att_type" and isinstance(found, str):
            found = [part.strip() for part in found.split("|")]
        if isinstance(found, list) and sorted(map(str, found)) == sorted(wanted):
            found = wanted
        if name == "max_relative_positions" and found == stored.get(_ROWS):
            found = wanted  # the same number, given twice
        if found != wanted:
            raise _wrong(place, name, json.dumps(wanted), found)
    if model_type == "deberta-v2":
        buckets = stored.get("position_buckets")
        if type(buckets) is not int or buckets < 2:
            raise _wrong(place, "position_buckets", "a number above 1", buckets)
        width = stored.get("conv_kernel_size", 0)
        if type(width) is not int or width < 0 or (width and not width % 2):
            raise _wrong(place, "conv_kernel_size", "0 or an odd number", width)
        if width and (act := stored.get("conv_act", "tanh")) != "gelu":
            raise _wrong(place, "conv_act", '"gelu"', act)
    if model_type == "modernbert":
        return _modern(stored, place)
    rows = stored.get(_ROWS)
    if model_type in ("roberta", "xlm-roberta", "mpnet") and type(rows) is int:
        # The table has rows for the ids up to that of padding.
        return {"max_positions": rows - int(stored.get("pad_token_id", 1)) - 1}
    return {}


def _modern(stored: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the fields of ModernBERT, by the names of transformers 4 or 5."""
    found = {
        "pad_id": stored.get("pad_token_id", 50283),
        "global_every": stored.get("global_attn_every_n_layers", 3),
        "local_window": stored.get("local_attention", 128),
    }
    types = stored.get("layer_types")
    if isinstance(types, list) and types:
        later = [i for i, each in enumerate(types) if i and each == "full_attention"]
        every = found["global_every"] = later[0] if later else len(types)
        kinds = ("full_attention", "sliding_attention")
        if types != [kinds[bool(i % every)] for i in range(len(types))]:
            raise _wrong(place, "layer_types", "one period of full_attention", types)
    for name, number in found.items():
        if type(number) is not int or number < 0:
            raise _wrong(place, PATTERN.get(name, "pad_token_id"), "a number", number)
    pooling = stored.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise _wrong(place, "classifier_pooling", '"cls" or "mean"', pooling)
    ropes = stored.get("rope_parameters") or {}
    theta: Any = 160000.0
    for name, kind, default in (
        ("global_theta", "full_attention", theta),
        ("local_theta", "sliding_attention", 10000.0),
    ):
        rope = ropes.get(kind) or {}
        if (rope_type := rope.get("rope_type", "default")) != "default":
            raise _wrong(place, "rope_type", '"default"', rope_type)
        given = rope.get("rope_theta", stored.get(PATTERN[name], default))
        theta = theta if given is None else given  # null: that of the global layers
        if type(theta) not in (int, float) or theta <= 0:
            raise _wrong(place, PATTERN[name], "a number above 0", theta)
        found[name] = float(theta)
    return found | {"pooling": pooling}


def _wrong(place: str, name: str, wanted: str, found: Any) -> InputError:
    return InputError(
        f"init_from: {place}: {name} of config.json: expected {wanted}, got "
        f"{json.dumps(found)}. Use weights with this value."
    )
