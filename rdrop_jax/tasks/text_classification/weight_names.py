"""Conversion of BERT and RoBERTa weight names between transformers and this package.

Reads the names of BertModel, RobertaModel and their heads, with or without the prefix
``bert.`` or ``roberta.``, including ``LayerNorm.gamma`` and ``beta`` of old files.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

# transformers names to ours, for modules with a kernel or a scale, and a bias.
_BLOCK = {
    **{f"attention.self.{x}": f"attention/{x}" for x in ("query", "key", "value")},
    "attention.output.dense": "attention/attention_out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}
_TABLES = {
    "embeddings.word_embeddings.weight": "encoder/tokens",
    "embeddings.position_embeddings.weight": "encoder/positions",
    "embeddings.token_type_embeddings.weight": "encoder/types",
}
_HEADS = {
    "bert": {"pooler.dense": "pooler", "classifier": "head"},
    "roberta": {"classifier.dense": "pooler", "classifier.out_proj": "head"},
}
_OLD = {".gamma": ".weight", ".beta": ".bias"}
# Pretraining heads, often tied to the token embeddings, and buffers without weights.
_BESIDE = (
    "cls.",
    "lm_head.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)


def to_ours(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rename weights of transformers to our names, and transpose kernels.

    Args:
      arrays: arrays by their names in transformers.
      kind: "bert" or "roberta".
      per_token: True if the model has a head per token, and no pooler.

    Returns:
      Arrays by our paths, such as ``encoder/block_0/mlp_in/kernel``, with unknown names
      unchanged; and the names that are ignored on purpose.

    Example:
      >>> import numpy as np
      >>> found, beside = to_ours({"classifier.bias": np.zeros(2)}, "bert")
      >>> list(found), beside
      (['head/bias'], [])
    """
    plain = {_plain(name, kind): name for name in arrays}
    names = _names(kind, _layers(plain), per_token)
    beside = [
        theirs
        for name, theirs in plain.items()
        if name not in names and name.startswith((*_BESIDE, "pooler."))
    ]
    found = {}
    for name, theirs in plain.items():
        if theirs not in beside:
            ours = names.get(name, theirs)
            x = arrays[theirs]
            found[ours] = x.T if ours.endswith("/kernel") else x
    return found, beside


def to_theirs(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> dict[str, np.ndarray]:
    """Invert `to_ours`, with the name prefix of models with a head."""
    layers = {int(m[1]) for k in arrays if (m := re.match(r"encoder/block_(\d+)/", k))}
    back = {ours: theirs for theirs, ours in _names(kind, layers, per_token).items()}
    return {
        _prefixed(back[name], kind): x.T if name.endswith("/kernel") else x
        for name, x in arrays.items()
    }


def _plain(name: str, kind: str) -> str:
    """Remove the prefix, and replace old spellings."""
    name = name.removeprefix(f"{kind}.")
    for old, new in _OLD.items():
        if name.endswith("LayerNorm" + old):
            name = name.removesuffix(old) + new
    return name


def _prefixed(name: str, kind: str) -> str:
    return name if name.startswith("classifier") else f"{kind}.{name}"


def _layers(names: Iterable[str]) -> set[int]:
    return {int(m[1]) for n in names if (m := re.match(r"encoder\.layer\.(\d+)\.", n))}


def _names(kind: str, layers: Iterable[int], per_token: bool) -> dict[str, str]:
    """Map all transformers names, without prefix, to ours."""
    heads = {"classifier": "head"} if per_token else _HEADS[kind]
    modules = heads | {"embeddings.LayerNorm": "encoder/embedding_norm"}
    for i in layers:
        for theirs, ours in _BLOCK.items():
            modules[f"encoder.layer.{i}.{theirs}"] = f"encoder/block_{i}/{ours}"
    names = dict(_TABLES)
    for theirs, ours in modules.items():
        leaf = "scale" if ours.endswith("norm") else "kernel"
        names[f"{theirs}.weight"] = f"{ours}/{leaf}"
        names[f"{theirs}.bias"] = f"{ours}/bias"
    return names
