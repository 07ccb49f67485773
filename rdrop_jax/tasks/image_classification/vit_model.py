"""ViT and DINOv2: construction, and weights as .npz (ViT alone) or safetensors."""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rdrop_jax.core.passes import Params
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import SIZES, ViT
from rdrop_jax.pretrained import mapping, vision, weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.field_checks import (
    check_choices,
    check_heads,
    check_least,
    resized,
)
from rdrop_jax.tasks.image_classification.images import INTERPOLATIONS

# Formats of exports by model_type.
FORMATS = {"vit": ("safetensors", "npz"), "dinov2": ("safetensors",)}
# Flax Linen numbers modules per type; the published files are older than Linen.
_RENUMBERED = {
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
    "MlpBlock_0/": "MlpBlock_3/",
    "LayerNorm_1/": "LayerNorm_2/",
}
_HF_EMBEDDING = "embeddings.patch_embeddings.projection.weight"
_HF_CLASSES = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
}


@dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing and class names of a model.

    Attributes:
      size: pixels per side.
      channels: number of channels.
      mean: mean per channel, subtracted from pixels in [0, 1].
      std: standard deviation per channel, which divides the centered pixels.
      labels: class names; may be empty.
      interpolation: filter of the resize, a key of `images.INTERPOLATIONS`.
      eval_crop: side of the central square, as share of the shorter side; 0: the
        whole image, resized to a square.
    """

    size: int
    channels: int
    mean: Sequence[float]
    std: Sequence[float]
    labels: Sequence[str] = ()
    interpolation: str = "bilinear"
    eval_crop: float = 0.0


def make_model(config: ConfigDict) -> ViT:
    """Build the module described by ``config.model``.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    m = config.model
    activations = ("gelu", "swiglu") if m.name == "dinov2" else ("gelu",)
    check_choices(
        {
            "model.size": (m.size, tuple(SIZES)),
            "model.activation": (m.activation, activations),
        }
    )
    counts = {f"model.{k}": m[k] for k in (*Size._fields, "patch_size")}
    counts |= {f"data.{k}": config.data[k] for k in ("image_size", "num_classes")}
    check_least({field: (value, 1) for field, value in counts.items()})
    size = resized(m, SIZES[m.size])
    check_heads(size)
    if m.name == "dinov2" and size.mlp_width % size.width:
        raise InputError(
            f"model.mlp_width: expected a multiple of model.width {size.width} for "
            f"model.name=dinov2, found {size.mlp_width}"
        )
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
        remat=m.remat and m.remat_policy,
        masks=m.masks,
        fused_attention=m.fused_attention,
        norm_eps=m.norm_eps,
        kind=m.name,
        activation=m.activation,
        drop_path=m.drop_path,
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
        interpolation=data.interpolation,
        eval_crop=data.eval_crop,
    )
    return family(module, images)


def family(module: ViT, images: Preprocessing) -> Family:
    """Make the import and export functions for parameters of a ViT."""
    bicubic = module.kind == "dinov2"
    return Family(
        read=lambda path: read(path, module.norm_eps, module.kind, images),
        save=lambda params, folder, format: save(
            params, folder, format, module=module, images=images
        ),
        formats=FORMATS[module.kind],
        facts={
            "model_type": module.kind,
            "hidden_act": "gelu",
            "model.heads": module.size.heads,
        },
        resize={
            "positions": functools.partial(vision.resize_positions, bicubic=bicubic)
        },
        reinit=("head",),
        classes=tuple(images.labels),
    )


def read(
    path: Path,
    norm_eps: float,
    kind: str = "vit",
    images: Preprocessing | None = None,
) -> Weights:
    """Read a .npz, a .safetensors or a folder, and rename its weights to our names.

    Args:
      path: path of a file or folder.
      norm_eps: epsilon of the model; a note reports a different one in config.json.
      kind: "vit" or "dinov2".
      images: preprocessing of the run; notes report different pixel statistics in
        preprocessor_config.json.

    Returns:
      The weights; unknown names are unchanged.

    Raises:
      InputError: the file is damaged or has another format.
    """
    stored = weight_files.read(path)
    if path.suffix == ".npz":
        return _from_npz(stored)
    found = _from_hf(stored, norm_eps, kind, path)
    more = () if images is None else _statistics_notes(path, images)
    return replace(found, notes=(*found.notes, *more))


def _statistics_notes(path: Path, images: Preprocessing) -> Iterator[str]:
    file = path / "preprocessor_config.json"
    theirs = read_json(file) if file.is_file() else {}
    if not theirs.get("do_normalize", True):
        return
    for field, ours in (("mean", images.mean), ("std", images.std)):
        found = theirs.get(f"image_{field}")
        if isinstance(found, list) and [*found] != [*ours]:
            yield (
                f"{file.name} has image_{field} {found}, data.{field} is {[*ours]}: "
                f"--config.data.{field}={json.dumps(found, separators=(',', ':'))} "
                "makes them equal"
            )


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
        names = mapping.inverted(vision.npz_names(ours))
        arrays = {names[k]: _to_npz(k, x, module, images) for k, x in ours.items()}
        weight_files.write_npz(arrays, folder)
        return
    patch, kind = module.patch_size, module.kind
    arrays = mapping.renamed(ours, mapping.inverted(vision.hf_names(ours, kind)))
    arrays = mapping.fused(arrays, vision.FUSED)
    kernel = arrays[_HF_EMBEDDING].reshape(-1, patch, patch, images.channels)
    arrays[_HF_EMBEDDING] = kernel.transpose(0, 3, 1, 2)
    weight_files.write(
        {
            k if k.startswith("classifier.") else f"{kind}.{k}": x
            for k, x in arrays.items()
        },
        folder,
        config=_hf_config(module, images),
        preprocessor=_hf_preprocessor(images),
    )


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
    names = vision.npz_names(theirs)
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
    if any(f"/{part}/" in ours for part in vision.PARTS):
        return x.reshape(*x.shape[:-1], *heads)
    if ours == "embedding/kernel":
        return x.reshape(module.patch_size, module.patch_size, images.channels, -1)
    return x


def _from_hf(
    stored: weight_files.Stored, norm_eps: float, kind: str, path: Path
) -> Weights:
    theirs = {name.removeprefix(f"{kind}."): x for name, x in stored.arrays.items()}
    beside = [k for k in theirs if k.startswith(("pooler.", "embeddings.mask_token"))]
    notes = [f"{name}: not loaded; this model has no such layer" for name in beside]
    theirs = {name: x for name, x in theirs.items() if name not in beside}
    theirs = mapping.split_fused(theirs, vision.FUSED)
    patches = theirs.get(_HF_EMBEDDING)
    if patches is not None and patches.ndim == 4:
        flat = patches.transpose(0, 2, 3, 1).reshape(len(patches), -1)
        theirs[_HF_EMBEDDING] = flat
    arrays = mapping.renamed(theirs, vision.hf_names(theirs, kind))
    return mapping.encoder_weights(arrays, stored, norm_eps, path, notes)


def _hf_config(module: ViT, images: Preprocessing) -> dict[str, Any]:
    labels = images.labels or [f"LABEL_{i}" for i in range(module.num_classes)]
    config = {
        "architectures": [_HF_CLASSES[module.kind]],
        "model_type": module.kind,
        "image_size": images.size,
        "patch_size": module.patch_size,
        "num_channels": images.channels,
        "qkv_bias": True,
    } | mapping.encoder_config(module, module.num_classes, labels)
    if module.kind == "dinov2":
        del config["intermediate_size"]
        config["mlp_ratio"] = module.size.mlp_width // module.size.width
        config["use_mask_token"] = False
        config["use_swiglu_ffn"] = module.activation == "swiglu"
    return config


def _hf_preprocessor(images: Preprocessing) -> dict[str, Any]:
    square = {"height": images.size, "width": images.size}
    resized: dict[str, Any] = {"image_processor_type": "ViTImageProcessor"}
    resized |= {"do_resize": True, "size": square}
    resized["do_convert_rgb"] = images.channels == 3
    if images.eval_crop:
        shorter = round(images.size / images.eval_crop)
        resized["image_processor_type"] = "BitImageProcessor"
        resized["size"] = {"shortest_edge": shorter}
        resized |= {"do_center_crop": True, "crop_size": square}
    return resized | {
        "resample": int(INTERPOLATIONS[images.interpolation]),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(images.mean),
        "image_std": list(images.std),
    }
