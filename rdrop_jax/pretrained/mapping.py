"""Conversion between published weights and ours: names, layouts and config.json."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdrop_jax.pretrained import head_classes
from rdrop_jax.pretrained.initialize import Weights
from rdrop_jax.pretrained.weight_files import Stored

# Endings of the published names of a kernel, a scale and a bias.
TORCH = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}
FLAX = {"kernel": "/kernel", "scale": "/scale", "bias": "/bias"}
# Properties of a model and their fields in config.json.
_FACTS = {
    "model_type": "model_type",
    "hidden_act": "hidden_act",
    "model.heads": "num_attention_heads",
    "pad_token_id": "pad_token_id",
}


def parameter_names(
    modules: Mapping[str, str],
    arrays: Mapping[str, str],
    layers: Iterable[int],
    endings: Mapping[str, str] = TORCH,
) -> dict[str, str]:
    """Map published parameter names to ours.

    Args:
      modules: our name of each published module with a kernel or a scale, and a bias;
        ``{}`` in both names is the number of a layer.
      arrays: our name of each parameter outside these modules.
      layers: numbers of the layers.
      endings: published ending of a kernel, a scale and a bias.

    Example:
      >>> parameter_names({"fc.{}": "mlp_{}"}, {}, [3])
      {'fc.3.weight': 'mlp_3/kernel', 'fc.3.bias': 'mlp_3/bias'}
    """
    names = dict(arrays)
    for theirs, ours in modules.items():
        for i in layers if "{}" in theirs else (0,):
            for leaf in ("scale" if ours.endswith("norm") else "kernel", "bias"):
                names[theirs.format(i) + endings[leaf]] = f"{ours.format(i)}/{leaf}"
    return names


def in_blocks(names: Mapping[str, str], theirs: str, ours: str) -> dict[str, str]:
    """Prefix names within a block, for `parameter_names`.

    Example:
      >>> in_blocks({"fc1": "mlp_in"}, "layers.{}.", "block_{}/")
      {'layers.{}.fc1': 'block_{}/mlp_in'}
    """
    return {theirs + name: ours + new for name, new in names.items()}


def split_fused(
    arrays: Mapping[str, np.ndarray], parts_of: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Split published arrays whose rows belong to several modules.

    Args:
      arrays: arrays by name.
      parts_of: ending of such a name to the endings of its parts, in order.

    Example:
      >>> found = split_fused({"a.qk": np.arange(4)}, {"qk": ("q", "k")})
      >>> {name: x.tolist() for name, x in found.items()}
      {'a.q': [0, 1], 'a.k': [2, 3]}
    """
    found = dict(arrays)
    for whole, parts in parts_of.items():
        for name in [name for name in found if name.endswith(whole)]:
            each = np.split(found.pop(name), len(parts))
            prefix = name.removesuffix(whole)
            found |= {prefix + part: x for part, x in zip(parts, each, strict=True)}
    return found


def fused(
    arrays: Mapping[str, np.ndarray], parts_of: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Invert `split_fused`."""
    found = dict(arrays)
    for whole, parts in parts_of.items():
        for first in [name for name in found if name.endswith(parts[0])]:
            prefix = first.removesuffix(parts[0])
            each = [found.pop(prefix + part) for part in parts]
            found[prefix + whole] = np.concatenate(each)
    return found


def layer_numbers(names: Iterable[str]) -> set[int]:
    """Return the numbers of the layers in published names or in ours."""
    pattern = r"(?:layers?\.|block_)(\d+)[./]"
    return {int(m[1]) for name in names if (m := re.search(pattern, name))}


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """Map values to keys."""
    return {ours: theirs for theirs, ours in names.items()}


def renamed(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Rename arrays and transpose kernels, from PyTorch's names to ours or back.

    Args:
      arrays: arrays by name.
      names: new names by name; other names are unchanged.

    Returns:
      Arrays by their new names.
    """
    found = {}
    for name, x in arrays.items():
        new = names.get(name, name)
        kernel = name.endswith("/kernel") or new.endswith("/kernel")
        found[new] = x.T if kernel else x
    return found


def encoder_weights(
    arrays: Mapping[str, np.ndarray],
    stored: Stored,
    norm_eps: float,
    path: Path,
    notes: Sequence[str],
) -> Weights:
    """Combine the arrays of an encoder with the properties in config.json.

    Args:
      arrays: arrays by our names.
      stored: the published weights.
      norm_eps: epsilon of the model; a note reports a different one in config.json.
      path: path of the weights, for messages.
      notes: messages so far.

    Raises:
      InputError: invalid class names in config.json.
    """
    config, notes = stored.config, list(notes)
    facts = {k: config[v] for k, v in _FACTS.items() if v in config}
    if not config:
        notes.append("no config.json: model.heads and model.norm_eps are not checked")
    eps = config.get("layer_norm_eps", norm_eps)
    if eps != norm_eps:
        notes.append(
            f"config.json has layer_norm_eps {eps}, here it is {norm_eps}: outputs "
            f"differ slightly; --config.model.norm_eps={eps} makes them equal"
        )
    named, more = head_classes.of_head(arrays, config, f"{path}, config.json")
    return Weights(arrays, facts, (*notes, *more), stored.sha256, named)


def encoder_config(module: Any, outputs: int, labels: Sequence[str]) -> dict[str, Any]:
    """Return the fields of config.json that ViT, BERT and RoBERTa share.

    Args:
      module: a `ViT` or an `Encoder`.
      outputs: number of outputs of the head.
      labels: name of each output.
    """
    return {
        "hidden_size": module.size.width,
        "num_hidden_layers": module.size.layers,
        "num_attention_heads": module.size.heads,
        "intermediate_size": module.size.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "layer_norm_eps": module.norm_eps,
        "num_labels": outputs,
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
        "dtype": "float32",
    }
