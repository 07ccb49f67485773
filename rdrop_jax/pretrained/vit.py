"""ViT weights: Google's .npz and Hugging Face's safetensors, in and out.

Names of the .npz as in github.com/google-research/vision_transformer (ImageNet-21k and
AugReg files), of safetensors as ViTForImageClassification and ViTModel store them.
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
from rdrop_jax.pretrained import classes, files
from rdrop_jax.pretrained.merge import Family, Weights, flatten
from rdrop_jax.pretrained.vit_names import (
    PARTS,
    RENUMBERED,
    hf_names,
    layers,
    npz_names,
)

FORMATS = ("safetensors", "npz")


@dataclass(frozen=True)
class Images:
    """What an exported model says of the images it takes and the classes it gives.

    Attributes:
      size: pixels per side.
      channels: of each pixel.
      mean: subtracted from pixels in [0, 1], per channel.
      std: then divides, per channel.
      labels: names of the classes; may be empty.
    """

    size: int
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    labels: Sequence[str] = ()


def family(module: ViT, images: Images) -> Family:
    """How the parameters of a ViT come from files and go to files."""
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
    """Weights of a .npz, a .safetensors or a folder, under the names they have here.

    Args:
      path: of a file or folder.
      norm_eps: of the model; a note is made where config.json has another.

    Returns:
      The weights; names that mean nothing here stay as they are.

    Raises:
      InputError: the file is damaged or something else.
    """
    stored = files.read(path)
    if path.suffix == ".npz":
        return _from_npz(stored)
    return _from_hf(stored, norm_eps, path)


def save(
    params: Params, folder: Path, format: str, *, module: ViT, images: Images
) -> None:
    """Writes parameters as Google's code or Hugging Face's transformers read them.

    Args:
      params: of ``module``.
      folder: to write into.
      format: "safetensors" or "npz".
      module: the model.
      images: what config.json and preprocessor_config.json say.
    """
    ours: dict[str, np.ndarray] = jax.device_get(flatten(params))
    blocks = range(module.size.layers)
    if format == "npz":
        names = {v: k for k, v in npz_names(blocks).items()}
        arrays = {names[k]: _to_npz(k, x, module, images) for k, x in ours.items()}
        files.write_npz(arrays, folder)
        return
    names = {v: k for k, v in hf_names(blocks).items()}
    arrays = {
        ("" if k.startswith("head/") else "vit.") + names[k]: _to_hf(
            k, x, module.patch_size, images.channels
        )
        for k, x in ours.items()
    }
    files.write(
        arrays,
        folder,
        config=_hf_config(module, images),
        preprocessor=_hf_preprocessor(images),
    )


def resize_positions(
    positions: Float[np.ndarray, "1 found width"], shape: tuple[int, ...]
) -> Float[np.ndarray, "1 wanted width"] | None:
    """Position embeddings for a grid of another size, class token untouched.

    Bilinear with the corners of both grids on each other, by `scipy.ndimage.zoom`, as
    the code that made and fine-tuned the published weights does it
    (google-research/vision_transformer, vit_jax/checkpoint.py).

    Args:
      positions: embeddings of the class token and of a square grid.
      shape: wanted.

    Returns:
      The resized embeddings; none where a grid is not square or the widths differ.
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


def _from_npz(stored: files.Stored) -> Weights:
    theirs, notes = dict(stored.arrays), []
    if any(name.startswith("opt/target/") for name in theirs):
        # Some AugReg files hold a whole optimizer, the parameters under its target.
        start = "opt/target/"
        theirs = {
            name.removeprefix(start): x
            for name, x in theirs.items()
            if name.startswith(start)
        }
    for old, new in RENUMBERED.items():
        theirs = {re.sub(f"/{old}", f"/{new}", k): x for k, x in theirs.items()}
    if any(name.startswith("pre_logits/") for name in theirs):
        # The head is of use only behind this layer.
        notes.append("pre_logits: not taken, nor the head that follows it")
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
    """Heads, or the pixels of a patch, as one axis."""
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


def _from_hf(stored: files.Stored, norm_eps: float, path: Path) -> Weights:
    theirs = {name.removeprefix("vit."): x for name, x in stored.arrays.items()}
    beside = [k for k in theirs if k.startswith(("pooler.", "embeddings.mask_token"))]
    notes = [f"{name}: not taken; this model has none" for name in beside]
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
    named, more = classes.of_head(arrays, stored.config, f"{path}, config.json")
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
