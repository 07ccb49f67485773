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
        "conv_kernel_size": (0, 0),
        "max_relative_positions": (-1, -1),
        "pooler_hidden_act": ("gelu", "gelu"),
        "pooler_dropout": (0, 0),
    },
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
            raise InputError(
                f"init_from: {place}: {name} of config.json: expected "
                f"{json.dumps(wanted)}, got {json.dumps(found)}. Use weights of "
                f"{model_type} with this value."
            )
    if model_type == "deberta-v2" and type(stored.get("position_buckets")) is not int:
        raise InputError(
            f"init_from: {place}: position_buckets of config.json: expected a number, "
            f"got {stored.get('position_buckets')!r}. Use weights of {model_type} with "
            "buckets."
        )
    rows = stored.get(_ROWS)
    if model_type in ("roberta", "xlm-roberta", "mpnet") and type(rows) is int:
        # The table has rows for the ids up to that of padding.
        return {"max_positions": rows - int(stored.get("pad_token_id", 1)) - 1}
    return {}
