"""ViT parameter names of Google's .npz and of Hugging Face's safetensors."""

import re
from collections.abc import Callable, Iterable, Mapping

PARTS = ("query", "key", "value")

# External names to ours, for modules with a kernel or a scale, and a bias.
_NPZ = {
    "embedding": "embedding",
    "Transformer/encoder_norm": "norm",
    "head": "head",
}
_NPZ_BLOCK = {
    "LayerNorm_0": "attention_norm",
    "LayerNorm_2": "mlp_norm",
    **{f"MultiHeadDotProductAttention_1/{x}": f"attention/{x}" for x in PARTS},
    "MultiHeadDotProductAttention_1/out": "attention/attention_out",
    "MlpBlock_3/Dense_0": "mlp/mlp_in",
    "MlpBlock_3/Dense_1": "mlp/mlp_out",
}
_NPZ_ARRAYS = {
    "cls": "class_token",
    "Transformer/posembed_input/pos_embedding": "positions",
}
# Flax Linen numbers modules per type; the published files are older than Linen.
RENUMBERED = {
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
    "MlpBlock_0/": "MlpBlock_3/",
    "LayerNorm_1/": "LayerNorm_2/",
}
_HF = {
    "embeddings.patch_embeddings.projection": "embedding",
    "layernorm": "norm",
    "classifier": "head",
}
_HF_BLOCK = {
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    **{f"attention.attention.{x}": f"attention/{x}" for x in PARTS},
    "attention.output.dense": "attention/attention_out",
    "intermediate.dense": "mlp/mlp_in",
    "output.dense": "mlp/mlp_out",
}
_HF_ARRAYS = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
}


def _names(
    modules: Mapping[str, str],
    block: Mapping[str, str],
    arrays: Mapping[str, str],
    prefix: str,
    weights: Callable[[str, str], str],
    layers: Iterable[int],
) -> dict[str, str]:
    """Map all external names to ours."""
    names = dict(arrays)
    blocks = {
        prefix.format(i) + theirs: f"block_{i}/{ours}"
        for i in layers
        for theirs, ours in block.items()
    }
    for theirs, ours in (dict(modules) | blocks).items():
        leaf = "scale" if ours.endswith("norm") else "kernel"
        names[weights(theirs, leaf)] = f"{ours}/{leaf}"
        names[weights(theirs, "bias")] = f"{ours}/bias"
    return names


def npz_names(layers: Iterable[int]) -> dict[str, str]:
    """Map names in an .npz to ours."""
    return _names(
        _NPZ,
        _NPZ_BLOCK,
        _NPZ_ARRAYS,
        "Transformer/encoderblock_{}/",
        lambda module, leaf: f"{module}/{leaf}",
        layers,
    )


def hf_names(layers: Iterable[int]) -> dict[str, str]:
    """Map names in safetensors to ours.

    The prefix ``vit.``, which all names but the classifier's have, is omitted.
    """
    return _names(
        _HF,
        _HF_BLOCK,
        _HF_ARRAYS,
        "encoder.layer.{}.",
        lambda module, leaf: f"{module}.{'bias' if leaf == 'bias' else 'weight'}",
        layers,
    )


def layers(pattern: str, names: Iterable[str]) -> set[int]:
    """Return the layer numbers matched by the group of a pattern."""
    return {int(m[1]) for name in names if (m := re.match(pattern, name))}
