"""Fields of text encoders in config.json, and those that have one value here."""

import json
from collections.abc import Mapping
from typing import Any

from rdrop_jax.errors import InputError

# Fields of the model and their names in config.json.
FIELDS = {"vocab_size": "vocab_size", "max_positions": "max_position_embeddings"}
# By model_type: the value that a field must have, and its value if absent.
FIXED: Mapping[str, Mapping[str, tuple[Any, Any]]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "mpnet": {"relative_attention_num_buckets": (32, 32)},
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
        if (found := stored.get(name, default)) != wanted:
            raise InputError(
                f"init_from: {place}: {name} of config.json: expected "
                f"{json.dumps(wanted)}, got {json.dumps(found)}. Use weights of "
                f"{model_type} with this value."
            )
    rows = stored.get("max_position_embeddings")
    if model_type in ("roberta", "xlm-roberta", "mpnet") and type(rows) is int:
        # The table has rows for the ids up to that of padding.
        return {"max_positions": rows - int(stored.get("pad_token_id", 1)) - 1}
    return {}
