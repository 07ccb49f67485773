"""Conversion of Hugging Face's BART and Marian weights to and from `Seq2Seq`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Names in a Hugging Face layer to names in our block. Kernels are transposed.
_IN_LAYER = {
    "self_attn.q_proj": "attention/query",
    "self_attn.k_proj": "attention/key",
    "self_attn.v_proj": "attention/value",
    "self_attn.out_proj": "attention/attention_out",
    "self_attn_layer_norm": "attention_norm",
    "encoder_attn.q_proj": "cross/query",
    "encoder_attn.k_proj": "cross/key",
    "encoder_attn.v_proj": "cross/value",
    "encoder_attn.out_proj": "cross/attention_out",
    "encoder_attn_layer_norm": "cross_norm",
    "fc1": "mlp/mlp_in",
    "fc2": "mlp/mlp_out",
    "final_layer_norm": "mlp_norm",
}
_ON_SIDE = {
    "layernorm_embedding": "{embed}/norm",
    "embed_positions.weight": "{embed}/positions/table",
    "layer_norm": "{side}/norm",
}
_EMBED = {"encoder": "source_embed", "decoder": "target_embed"}
# Copies of the shared embedding table in some files; sinusoids are computed.
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def bart_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert BART's tensors to parameters of a `Seq2Seq` with BART's options.

    The module needs ``activation="gelu", positions="learned", position_offset=2,
    scale_embedding=False, embedding_norm=True, logits_bias=True``; mBART has the
    same names and also needs ``pre_norm=True``.

    Args:
      tensors: tensors by their names in `BartForConditionalGeneration`.

    Returns:
      Nested parameters with the dtypes of the tensors.

    Raises:
      ValueError: a name is not that of a BART parameter.
    """
    return _nested(_renamed(tensors))


def bart_arrays(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert like `bart_params`, keyed by ``encoder/block_0/mlp/mlp_in/kernel``."""
    return dict(_renamed(tensors))


def bart_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Invert `bart_arrays`: rename arrays to the names in Hugging Face's files.

    Example:
      >>> list(bart_tensors({"target_embed/norm/scale": np.ones(2)}))
      ['model.decoder.layernorm_embedding.weight']
    """
    return dict(_theirs(path, x) for path, x in arrays.items())


def marian_params(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert Marian's tensors to parameters of a `Seq2Seq` with Marian's options.

    The module needs ``positions="marian", logits_bias=True``, and the activation of the
    model's config, if supported.

    Args:
      tensors: tensors by their names in `MarianMTModel`, with one shared table.

    Returns:
      Nested parameters with the dtypes of the tensors.

    Raises:
      ValueError: a name is not that of a Marian parameter.
    """
    places = "embed_positions.weight"
    return _nested(_renamed({k: v for k, v in tensors.items() if places not in k}))


def _renamed(tensors: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, x in tensors.items():
        short = name.removeprefix("model.")
        if short in _TIED:
            continue
        if short == "shared.weight":
            yield "embedding", x
        elif short == "final_logits_bias":
            yield "logits_bias", x.reshape(-1)
        else:
            yield _ours(short, name), _laid_out(short, x)


def _theirs(path: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    if path == "embedding":
        return "model.shared.weight", x
    if path == "logits_bias":
        return "final_logits_bias", x[None]
    *parents, leaf = path.split("/")
    kind = "bias" if leaf == "bias" else "weight"
    if leaf == "kernel":
        x = x.T
    side, *inner = parents
    for name, embed in _EMBED.items():
        if side == embed:
            at_norm = inner == ["norm"]
            stem = (
                f"layernorm_embedding.{kind}" if at_norm else "embed_positions.weight"
            )
            return f"model.{name}.{stem}", x
    if inner == ["norm"]:
        return f"model.{side}.layer_norm.{kind}", x
    block, stem = inner[0].removeprefix("block_"), "/".join(inner[1:])
    back = {ours: theirs for theirs, ours in _IN_LAYER.items()}
    return f"model.{side}.layers.{block}.{back[stem]}.{kind}", x


def _ours(short: str, name: str) -> str:
    found = re.fullmatch(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(\w+)", short)
    if found and found[3] in _IN_LAYER:
        side, layer, stem, leaf = found.groups()
        return f"{side}/block_{layer}/{_IN_LAYER[stem]}/{_leaf(stem, leaf)}"
    side, _, rest = short.partition(".")
    stem, _, leaf = rest.rpartition(".")
    if side in _EMBED:
        names = {"side": side, "embed": _EMBED[side]}
        if rest in _ON_SIDE:
            return _ON_SIDE[rest].format(**names)
        if stem in _ON_SIDE:
            return f"{_ON_SIDE[stem].format(**names)}/{_leaf(stem, leaf)}"
    raise ValueError(f"no parameter of an encoder-decoder is named {name!r}")


def _leaf(stem: str, leaf: str) -> str:
    if leaf == "bias":
        return "bias"
    return "scale" if "norm" in stem else "kernel"


def _laid_out(short: str, x: np.ndarray) -> np.ndarray:
    dense = x.ndim == 2 and "embed_positions" not in short
    return np.ascontiguousarray(x.T) if dense else x


def _nested(pairs: Iterator[tuple[str, np.ndarray]]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for path, x in pairs:
        *parents, leaf = path.split("/")
        node = params
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = x
    return params
