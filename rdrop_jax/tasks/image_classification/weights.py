"""Import and export of ViT weights: Google's .npz and Hugging Face's safetensors.

The .npz names are those of github.com/google-research/vision_transformer (ImageNet-21k
and AugReg files). The safetensors names are those of transformers'
ViTForImageClassification and ViTModel.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.ndimage
from jaxtyping import Float

from rdrop_jax.core.passes import Params
from rdrop_jax.models.vit import ViT
from rdrop_jax.pretrained import head_classes, weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.image_classification.weight_names import (
    PARTS,
    RENUMBERED,
    hf_names,
    layers,
    npz_names,
)

FORMATS = ("safetensors", "npz")


@dataclass(frozen=True)
class Images:
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


def family(module: ViT, images: Images) -> Family:
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
    params: Params, folder: Path, format: str, *, module: ViT, images: Images
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
    blocks = range(module.size.layers)
    if format == "npz":
        names = {v: k for k, v in npz_names(blocks).items()}
        arrays = {names[k]: _to_npz(k, x, module, images) for k, x in ours.items()}
        weight_files.write_npz(arrays, folder)
        return
    names = {v: k for k, v in hf_names(blocks).items()}
    arrays = {
        ("" if k.startswith("head/") else "vit.") + names[k]: _to_hf(
            k, x, module.patch_size, images.channels
        )
        for k, x in ours.items()
    }
    weight_files.write(
        arrays,
        folder,
        config=_hf_config(module, images),
        preprocessor=_hf_preprocessor(images),
    )


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
    for old, new in RENUMBERED.items():
        theirs = {re.sub(f"/{old}", f"/{new}", k): x for k, x in theirs.items()}
    if any(name.startswith("pre_logits/") for name in theirs):
        # The head is only usable after this layer.
        notes.append("pre_logits: not loaded, nor the head that follows it")
        theirs = {
            k: x
            for k, x in theirs.items()
            if k.split("/")[0] not in ("pre_logits", "head")
        }
    names = npz_names(layers(r"Transformer/encoderblock_(\d+)/", theirs))
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


def _to_npz(ours: str, x: np.ndarray, module: ViT, images: Images) -> np.ndarray:
    heads = (module.size.heads, module.size.width // module.size.heads)
    if ours.endswith("attention_out/kernel"):
        return x.reshape(*heads, -1)
    if any(f"/{part}/" in ours for part in PARTS):
        return x.reshape(*x.shape[:-1], *heads)
    if ours == "embedding/kernel":
        return x.reshape(module.patch_size, module.patch_size, images.channels, -1)
    return x


def _from_hf(stored: weight_files.Stored, norm_eps: float, path: Path) -> Weights:
    theirs = {name.removeprefix("vit."): x for name, x in stored.arrays.items()}
    beside = [k for k in theirs if k.startswith(("pooler.", "embeddings.mask_token"))]
    notes = [f"{name}: not loaded; this model has no such layer" for name in beside]
    theirs = {name: x for name, x in theirs.items() if name not in beside}
    names = hf_names(layers(r"encoder\.layer\.(\d+)\.", theirs))
    arrays = {}
    for name, x in theirs.items():
        ours = names.get(name, name)
        if ours == "embedding/kernel" and x.ndim == 4:
            x = x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])
        arrays[ours] = x.T if ours.endswith("/kernel") and ours[:3] != "emb" else x
    known = {
        "model_type": "model_type",
        "hidden_act": "hidden_act",
        "model.heads": "num_attention_heads",
    }
    facts = {k: stored.config[v] for k, v in known.items() if v in stored.config}
    if not stored.config:
        notes.append("no config.json: model.heads and model.norm_eps are not checked")
    eps = stored.config.get("layer_norm_eps", norm_eps)
    if eps != norm_eps:
        notes.append(
            f"config.json has layer_norm_eps {eps}, here it is {norm_eps}: outputs "
            f"differ slightly; --config.model.norm_eps={eps} makes them equal"
        )
    named, more = head_classes.of_head(arrays, stored.config, f"{path}, config.json")
    return Weights(arrays, facts, (*notes, *more), stored.sha256, named)


def _to_hf(ours: str, x: np.ndarray, patch: int, channels: int) -> np.ndarray:
    if ours == "embedding/kernel":
        return x.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)
    return x.T if ours.endswith("/kernel") else x


def _hf_config(module: ViT, images: Images) -> dict[str, Any]:
    labels = images.labels or [f"LABEL_{i}" for i in range(module.num_classes)]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": module.size.width,
        "num_hidden_layers": module.size.layers,
        "num_attention_heads": module.size.heads,
        "intermediate_size": module.size.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": module.attention_dropout,
        "layer_norm_eps": module.norm_eps,
        "image_size": images.size,
        "patch_size": module.patch_size,
        "num_channels": images.channels,
        "qkv_bias": True,
        "num_labels": module.num_classes,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": "float32",
    }


def _hf_preprocessor(images: Images) -> dict[str, Any]:
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
