"""Published names and position embeddings of Vision Transformers.

The .npz names are those of github.com/google-research/vision_transformer (ImageNet-21k
and AugReg files). The safetensors names are those of transformers' ViT and DINOv2.
"""

import math
from collections.abc import Iterable

import numpy as np
import scipy.ndimage
from jaxtyping import Float

from rdrop_jax.pretrained import mapping

PARTS = ("query", "key", "value")
# Published names to ours, for modules with a kernel or a scale, and a bias.
_NPZ_BLOCK = {
    "LayerNorm_0": "attention_norm",
    "LayerNorm_2": "mlp_norm",
    **{f"MultiHeadDotProductAttention_1/{x}": f"attention/{x}" for x in PARTS},
    "MultiHeadDotProductAttention_1/out": "attention/attention_out",
    "MlpBlock_3/Dense_0": "mlp/mlp_in",
    "MlpBlock_3/Dense_1": "mlp/mlp_out",
}
_NPZ = {
    "embedding": "embedding",
    "Transformer/encoder_norm": "norm",
    "head": "head",
    **mapping.in_blocks(_NPZ_BLOCK, "Transformer/encoderblock_{}/", "block_{}/"),
}
_NPZ_ARRAYS = {
    "cls": "class_token",
    "Transformer/posembed_input/pos_embedding": "positions",
}
# Names of a block by model_type, or of DINOv2 with SwiGLU, and shared names. The prefix
# "vit." or "dinov2.", which all names but those of the classifier have, is omitted.
_HF_BLOCKS = {
    "vit": {
        "layernorm_before": "attention_norm",
        "layernorm_after": "mlp_norm",
        "intermediate.dense": "mlp/mlp_in",
        "output.dense": "mlp/mlp_out",
    },
    "dinov2": {
        "norm1": "attention_norm",
        "norm2": "mlp_norm",
        "mlp.fc1": "mlp/mlp_in",
        "mlp.fc2": "mlp/mlp_out",
    },
    "swiglu": {
        "norm1": "attention_norm",
        "norm2": "mlp_norm",
        "mlp.in": "mlp/mlp_in",
        "mlp.gate": "mlp/mlp_gate",
        "mlp.weights_out": "mlp/mlp_out",
    },
}
# Parts of one array of DINOv2 with SwiGLU, in this order.
FUSED = {
    f"mlp.weights_in.{leaf}": (f"mlp.in.{leaf}", f"mlp.gate.{leaf}")
    for leaf in ("weight", "bias")
}
_HF_ATTENTION = {
    **{f"attention.attention.{x}": f"attention/{x}" for x in PARTS},
    "attention.output.dense": "attention/attention_out",
}
_HF = {
    "embeddings.patch_embeddings.projection": "embedding",
    "layernorm": "norm",
    "classifier": "head",
}
_HF_ARRAYS = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
}
_LAYER_SCALES = {"layer_scale1": "attention_scale", "layer_scale2": "mlp_scale"}


def npz_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names of Google's code to ours, for the layers in these names."""
    layers = mapping.layer_numbers(names)
    return mapping.parameter_names(_NPZ, _NPZ_ARRAYS, layers, mapping.FLAX)


def hf_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """Map the names of transformers to ours, for the layers in these names.

    Args:
      names: names of parameters, published or ours.
      kind: model_type of config.json, "vit" or "dinov2".
    """
    names = tuple(names)
    layers = mapping.layer_numbers(names)
    gated = any("mlp_gate" in name or "mlp.gate" in name for name in names)
    block = _HF_BLOCKS["swiglu" if gated else kind] | _HF_ATTENTION
    modules = _HF | mapping.in_blocks(block, "encoder.layer.{}.", "block_{}/")
    scales = {
        f"encoder.layer.{i}.{theirs}.lambda1": f"block_{i}/{ours}/scale"
        for theirs, ours in _LAYER_SCALES.items()
        for i in layers
    }
    return mapping.parameter_names(modules, _HF_ARRAYS | scales, layers)


def resize_positions(
    positions: Float[np.ndarray, "1 found width"],
    shape: tuple[int, ...],
    *,
    bicubic: bool = False,
) -> Float[np.ndarray, "1 wanted width"] | None:
    """Resize position embeddings to another grid; the class token is unchanged.

    Args:
      positions: embeddings of the class token and of a square grid.
      shape: target shape.
      bicubic: False interpolates bilinearly with aligned corners, like the code that
        trained and fine-tuned Google's weights (google-research/vision_transformer,
        vit_jax/checkpoint.py). True interpolates like PyTorch's ``interpolate`` with
        ``mode="bicubic"``, which DINOv2 uses.

    Returns:
      The resized embeddings; None if a grid is not square or the widths differ.
    """
    if positions.ndim != 3 or len(shape) != 3 or positions.shape[2] != shape[2]:
        return None
    old, new = (math.isqrt(max(n - 1, 0)) for n in (positions.shape[1], shape[1]))
    if old**2 + 1 != positions.shape[1] or new**2 + 1 != shape[1] or not (old and new):
        return None
    token, grid = positions[:, :1], positions[0, 1:].astype(np.float32)
    grid = grid.reshape(old, old, -1)
    if bicubic:
        weights = _bicubic_weights(old, new)
        grid = np.einsum("io,jp,opd->ijd", weights, weights, grid, optimize=True)
    else:
        grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    grid = grid.astype(np.float32).reshape(1, new**2, -1)
    return np.concatenate([token, grid], axis=1)


def _bicubic_weights(old: int, new: int) -> Float[np.ndarray, "{new} {old}"]:
    """Return weights of old points for each new point; edges repeat beyond the grid.

    The kernel is that of Keys (1981) with a = -0.75. It is not widened if the grid
    shrinks.
    """
    a = -0.75
    center = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in range(-1, 3):
        point = np.floor(center) + step
        x = np.abs(center - point)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        index = np.clip(point, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), index), np.where(x <= 1, near, far))
    return weights
