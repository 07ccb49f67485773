"""Parameter names of text encoders in Hugging Face's files, and ours."""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from rdrop_jax.pretrained import mapping

# Prefix of published names, which also selects names and special tokens.
PREFIX = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "mpnet": "mpnet",
    "deberta-v2": "deberta",
    "modernbert": "model",
}
# Published names to ours, for modules with a kernel or a scale, and a bias.
_QKV = ("query", "key", "value")
_ATTENTION_OUT = {
    "attention.output.dense": "attention/attention_out",
    "attention.output.LayerNorm": "attention_norm",
}
_ATTENTION = {
    **{f"attention.self.{x}": f"attention/{x}" for x in _QKV},
    **_ATTENTION_OUT,
}
_ATTENTIONS = {
    "bert": _ATTENTION,
    "roberta": _ATTENTION,
    "mpnet": {
        **{f"attention.attn.{x[0]}": f"attention/{x}" for x in _QKV},
        "attention.attn.o": "attention/attention_out",
        "attention.LayerNorm": "attention_norm",
    },
    "deberta": {
        **{f"attention.self.{x}_proj": f"attention/{x}" for x in _QKV},
        **_ATTENTION_OUT,
    },
}
# Parts of one array of ModernBERT, in this order.
_FUSED = {
    "attn.Wqkv.weight": tuple(f"attn.{x}.weight" for x in _QKV),
    "mlp.Wi.weight": ("mlp.in.weight", "mlp.gate.weight"),
}
_MODERN_BLOCK = {
    **{f"attn.{x}": f"attention/{x}" for x in _QKV},
    "attn.Wo": "attention/attention_out",
    "attn_norm": "attention_norm",
    "mlp_norm": "mlp_norm",
    "mlp.in": "mlp_in",
    "mlp.gate": "mlp_gate",
    "mlp.Wo": "mlp_out",
}
_MLP = {
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}
_TABLES = {
    "embeddings.word_embeddings.weight": "encoder/tokens",
    "embeddings.position_embeddings.weight": "encoder/positions",
    "embeddings.token_type_embeddings.weight": "encoder/types",
    "encoder.relative_attention_bias.weight": "encoder/relative_bias",
    "encoder.rel_embeddings.weight": "encoder/relative",
}
_MODERN_TABLES = {"embeddings.tok_embeddings.weight": "encoder/tokens"}
_NORMS = {
    "embeddings.LayerNorm": "encoder/embedding_norm",
    "encoder.LayerNorm": "encoder/relative_norm",
    "encoder.conv.conv": "encoder/conv",
    "encoder.conv.LayerNorm": "encoder/conv_norm",
}
_MODERN_NORMS = {
    "embeddings.norm": "encoder/embedding_norm",
    "final_norm": "encoder/final_norm",
}
_TWO_LAYERS = {"classifier.dense": "pooler", "classifier.out_proj": "head"}
_POOLED = {"pooler.dense": "pooler", "classifier": "head"}
_HEADS = {
    "bert": _POOLED,
    "roberta": _TWO_LAYERS,
    "mpnet": _TWO_LAYERS,
    "deberta": _POOLED,
}
# Beginnings of names that have no prefix.
_OUTSIDE = {
    "deberta-v2": ("classifier", "pooler"),
    "modernbert": ("classifier", "head"),
}
# Pretraining heads, often tied to the token embeddings, and buffers without weights.
_UNUSED = (
    "cls.",
    "decoder.",
    "lm_head.",
    "lm_predictions.",
    "mask_predictions.",
    "embeddings.position_embeddings.",  # in files of DeBERTa
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.",
)


def to_ours(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rename weights of transformers to our names, and transpose kernels.

    Args:
      arrays: arrays by their names in transformers.
      kind: value of model_type.
      per_token: True if the model has a head per token, and no pooler.

    Returns:
      Arrays by our paths, such as ``encoder/block_0/mlp_in/kernel``, with unknown names
      unchanged; and the names that are ignored on purpose.

    Example:
      >>> import numpy as np
      >>> found, unused = to_ours({"classifier.bias": np.zeros(2)}, "bert")
      >>> list(found), unused
      (['head/bias'], [])
    """
    arrays = mapping.split_fused(arrays, _FUSED)
    known = _names(arrays, kind, per_token)
    plain = {theirs: _plain(theirs, kind) for theirs in arrays}
    unused = [
        theirs
        for theirs, name in plain.items()
        if name not in known and name.startswith(_UNUSED)
    ]
    names = {theirs: known.get(name, theirs) for theirs, name in plain.items()}
    kept = {theirs: x for theirs, x in arrays.items() if theirs not in unused}
    return mapping.renamed(kept, names), unused


def to_theirs(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> dict[str, np.ndarray]:
    """Invert `to_ours`, with the name prefix of models with a head."""
    names = mapping.inverted(_names(arrays, kind, per_token))
    outside = _OUTSIDE.get(kind, ("classifier",))
    found = {
        name if name.startswith(outside) else f"{PREFIX[kind]}.{name}": x
        for name, x in mapping.renamed(arrays, names).items()
    }
    return mapping.fused(found, _FUSED)


def _plain(name: str, kind: str) -> str:
    """Remove the prefix, and replace the old names of a scale and a bias."""
    name = name.removeprefix(f"{PREFIX[kind]}.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _names(names: Iterable[str], kind: str, per_token: bool) -> dict[str, str]:
    """Map all transformers names, without prefix, to ours."""
    layers = mapping.layer_numbers(names)
    if kind == "modernbert":
        modern = _MODERN_NORMS | {"head.dense": "pooler", "head.norm": "pooler_norm"}
        modern |= {"classifier": "head"}
        modern |= mapping.in_blocks(_MODERN_BLOCK, "layers.{}.", "encoder/block_{}/")
        return mapping.parameter_names(modern, _MODERN_TABLES, layers)
    family = PREFIX[kind]
    modules = {"classifier": "head"} if per_token else dict(_HEADS[family])
    block = _ATTENTIONS[family] | _MLP
    modules |= _NORMS
    modules |= mapping.in_blocks(block, "encoder.layer.{}.", "encoder/block_{}/")
    return mapping.parameter_names(modules, _TABLES, layers)
