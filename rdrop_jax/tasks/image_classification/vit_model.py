"""Vision Transformer: construction, and weights as .npz or safetensors.

The .npz names are those of github.com/google-research/vision_transformer (ImageNet-21k
and AugReg files). The safetensors names are those of transformers'
ViTForImageClassification and ViTModel.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Float
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.errors import InputError
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import SIZES, ViT
from rdrop_jax.pretrained import mapping, weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.field_checks import (
    check_choices,
    check_heads,
    check_least,
    resized,
)

FORMATS = ("safetensors", "npz")
_PARTS = ("query", "key", "value")
# Published names to ours, for modules with a kernel or a scale, and a bias.
_NPZ_BLOCK = {
    "LayerNorm_0": "attention_norm",
    "LayerNorm_2": "mlp_norm",
    **{f"MultiHeadDotProductAttention_1/{x}": f"attention/{x}" for x in _PARTS},
    "MultiHeadDotProductAttention_1/out": "attention/attention_out",
    "MlpBlock_3/Dense_0": "mlp/mlp_in",
    "MlpBlock_3/Dense_1": "mlp/mlp_out",
}
_NPZ = {
    "embedding": "embedding",
    "Transformer/encoder_norm": "norm",
    "head": "head",
    **{
        f"Transformer/encoderblock_{{}}/{theirs}": f"block_{{}}/{ours}"
        for theirs, ours in _NPZ_BLOCK.items()
    },
}
_NPZ_ARRAYS = {
    "cls": "class_token",
    "Transformer/posembed_input/pos_embedding": "positions",
}
# Flax Linen numbers modules per type; the published files are older than Linen.
_RENUMBERED = {
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
    "MlpBlock_0/": "MlpBlock_3/",
    "LayerNorm_1/": "LayerNorm_2/",
}
# The prefix "vit.", which all names but the classifier's have, is omitted.
_HF_BLOCK = {
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    **{f"attention.attention.{x}": f"attention/{x}" for x in _PARTS},
    "attention.output.dense": "attention/attention_out",
    "intermediate.dense": "mlp/mlp_in",
    "output.dense": "mlp/mlp_out",
}
_HF = {
    "embeddings.patch_embeddings.projection": "embedding",
    "layernorm": "norm",
    "classifier": "head",
    **{
        f"encoder.layer.{{}}.{theirs}": f"block_{{}}/{ours}"
        for theirs, ours in _HF_BLOCK.items()
    },
}
_HF_ARRAYS = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
}
_HF_EMBEDDING = "embeddings.patch_embeddings.projection.weight"


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing and class names of an exported model.

    Attributes:
      size: pixels per side.
      channels: number of channels.
      mean: mean per channel, subtracted from pixels in [0, 1].
      std: standard deviation per channel, which divides the centered pixels.
      labels: class names; may be empty.
    """

    size: int
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    labels: Sequence[str] = ()


def make_model(config: ConfigDict) -> ViT:
    """Build the module described by ``config.model``.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    m = config.model
    check_choices({"model.size": (m.size, tuple(SIZES))})
    counts = {f"model.{k}": m[k] for k in (*Size._fields, "patch_size")}
    counts |= {f"data.{k}": config.data[k] for k in ("image_size", "num_classes")}
    check_least({field: (value, 1) for field, value in counts.items()})
    size = resized(m, SIZES[m.size])
    check_heads(size)
    if config.data.image_size % m.patch_size:
        raise InputError(
            "model.patch_size: expected a divisor of data.image_size "
            f"{config.data.image_size}, found {m.patch_size}"
        )
    return ViT(
        size=size,
        num_classes=config.data.num_classes,
        patch_size=m.patch_size,
        dropout=m.dropout,
        attention_dropout=m.attention_dropout,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
        masks=m.masks,
        norm_eps=m.norm_eps,
    )


def make_family(module: ViT, data: ConfigDict) -> Family:
    """Make the import and export functions for parameters of the model.

    Args:
      module: the model.
      data: ``config.data``: preprocessing and class names.
    """
    images = Preprocessing(
        size=data.image_size,
        channels=data.channels,
        mean=np.broadcast_to(data.mean, data.channels).tolist(),
        std=np.broadcast_to(data.std, data.channels).tolist(),
        labels=tuple(data.classes),
    )
    return family(module, images)


def family(module: ViT, images: Preprocessing) -> Family:
    """Make the import and export functions for parameters of a ViT."""
    return Family(
        read=lambda path: read(path, module.norm_eps),
        save=lambda params, folder, format: save(
            params, folder, format, module=module, images=images
        ),
        formats=FORMATS,
        facts={
            "model_type": "vit",
            "hidden_act": "gelu",
            "model.heads": module.size.heads,
        },
        resize={"positions": resize_positions},
        reinit=("head",),
        classes=tuple(images.labels),
    )


def read(path: Path, norm_eps: float) -> Weights:
    """Read a .npz, a .safetensors or a folder, and rename its weights to our names.

    Args:
      path: path of a file or folder.
      norm_eps: epsilon of the model; a note reports a different one in config.json.

    Returns:
      The weights; unknown names are unchanged.

    Raises:
      InputError: the file is damaged or has another format.
    """
    stored = weight_files.read(path)
    if path.suffix == ".npz":
        return _from_npz(stored)
    return _from_hf(stored, norm_eps, path)


def save(
    params: Params, folder: Path, format: str, *, module: ViT, images: Preprocessing
) -> None:
    """Write parameters in the format of Google's code or Hugging Face's transformers.

    Args:
      params: parameters of ``module``.
      folder: output folder.
      format: "safetensors" or "npz".
      module: the model.
      images: content of config.json and preprocessor_config.json.
    """
    ours: dict[str, np.ndarray] = jax.device_get(flatten(params))
    if format == "npz":
        names = mapping.inverted(_npz_names(ours))
        arrays = {names[k]: _to_npz(k, x, module, images) for k, x in ours.items()}
        weight_files.write_npz(arrays, folder)
        return
    patch, names = module.patch_size, mapping.inverted(_hf_names(ours))
    arrays = mapping.renamed(ours, names)
    kernel = arrays[_HF_EMBEDDING].reshape(-1, patch, patch, images.channels)
    arrays[_HF_EMBEDDING] = kernel.transpose(0, 3, 1, 2)
    weight_files.write(
        {
            k if k.startswith("classifier.") else f"vit.{k}": x
            for k, x in arrays.items()
        },
        folder,
        config=_hf_config(module, images),
        preprocessor=_hf_preprocessor(images),
    )


def _npz_names(names: Iterable[str]) -> dict[str, str]:
    layers = mapping.layer_numbers(names)
    return mapping.parameter_names(_NPZ, _NPZ_ARRAYS, layers, mapping.FLAX)


def _hf_names(names: Iterable[str]) -> dict[str, str]:
    return mapping.parameter_names(_HF, _HF_ARRAYS, mapping.layer_numbers(names))


def resize_positions(
    positions: Float[np.ndarray, "1 found width"], shape: tuple[int, ...]
) -> Float[np.ndarray, "1 wanted width"] | None:
    """Resize position embeddings to another grid; the class token is unchanged.

    Uses bilinear interpolation with aligned corners (`scipy.ndimage.zoom`), like the
    code that trained and fine-tuned the published weights
    (google-research/vision_transformer, vit_jax/checkpoint.py).

    Args:
      positions: embeddings of the class token and of a square grid.
      shape: target shape.

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
    grid = scipy.ndimage.zoom(grid, (new / old, new / old, 1), order=1)
    return np.concatenate([token, grid.reshape(1, new**2, -1)], axis=1)


def _from_npz(stored: weight_files.Stored) -> Weights:
    theirs, notes = dict(stored.arrays), []
    if any(name.startswith("opt/target/") for name in theirs):
        # Some AugReg files contain a full optimizer, with parameters under "target".
        start = "opt/target/"
        theirs = {
            name.removeprefix(start): x
            for name, x in theirs.items()
            if name.startswith(start)
        }
    for old, new in _RENUMBERED.items():
        theirs = {re.sub(f"/{old}", f"/{new}", k): x for k, x in theirs.items()}
    if any(name.startswith("pre_logits/") for name in theirs):
        # The head is only usable after this layer.
        notes.append("pre_logits: not loaded, nor the head that follows it")
        theirs = {
            k: x
            for k, x in theirs.items()
            if k.split("/")[0] not in ("pre_logits", "head")
        }
    names = _npz_names(theirs)
    arrays, facts = {}, {}
    for name, x in theirs.items():
        ours = names.get(name, name)
        if ours.endswith("query/kernel") and x.ndim == 3:
            facts["model.heads"] = x.shape[1]
        arrays[ours] = _flat(ours, x) if name in names else x
    return Weights(arrays, facts, tuple(notes), stored.sha256)


def _flat(ours: str, x: np.ndarray) -> np.ndarray:
    """Merge the head axes, or the pixel axes of a patch, into one axis."""
    if ours.startswith("block_"):
        if ours.endswith("attention_out/kernel") and x.ndim == 3:
            return x.reshape(-1, x.shape[2])
        if ours.endswith("/kernel") and x.ndim == 3:
            return x.reshape(x.shape[0], -1)
        return x.ravel() if ours.endswith("/bias") else x
    if ours == "embedding/kernel" and x.ndim == 4:
        return x.reshape(-1, x.shape[3])
    return x


def _to_npz(ours: str, x: np.ndarray, module: ViT, images: Preprocessing) -> np.ndarray:
    heads = (module.size.heads, module.size.width // module.size.heads)
    if ours.endswith("attention_out/kernel"):
        return x.reshape(*heads, -1)
    if any(f"/{part}/" in ours for part in _PARTS):
        return x.reshape(*x.shape[:-1], *heads)
    if ours == "embedding/kernel":
        return x.reshape(module.patch_size, module.patch_size, images.channels, -1)
    return x


def _from_hf(stored: weight_files.Stored, norm_eps: float, path: Path) -> Weights:
    theirs = {name.removeprefix("vit."): x for name, x in stored.arrays.items()}
    beside = [k for k in theirs if k.startswith(("pooler.", "embeddings.mask_token"))]
    notes = [f"{name}: not loaded; this model has no such layer" for name in beside]
    theirs = {name: x for name, x in theirs.items() if name not in beside}
    patches = theirs.get(_HF_EMBEDDING)
    if patches is not None and patches.ndim == 4:
        flat = patches.transpose(0, 2, 3, 1).reshape(len(patches), -1)
        theirs[_HF_EMBEDDING] = flat
    arrays = mapping.renamed(theirs, _hf_names(theirs))
    return mapping.encoder_weights(arrays, stored, norm_eps, path, notes)


def _hf_config(module: ViT, images: Preprocessing) -> dict[str, Any]:
    labels = images.labels or [f"LABEL_{i}" for i in range(module.num_classes)]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": images.size,
        "patch_size": module.patch_size,
        "num_channels": images.channels,
        "qkv_bias": True,
    } | mapping.encoder_config(module, module.num_classes, labels)


def _hf_preprocessor(images: Preprocessing) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": images.size, "width": images.size},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
