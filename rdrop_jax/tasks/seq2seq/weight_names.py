"""Names of BART's, mBART's and Marian's weights in transformers, and ours."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.pretrained import mapping

# Limit on the difference between embedding rows and tokens of the tokenizer: published
# files omit <mask>, or round the number of rows up.
_ROUNDED = 128
# Published names to ours, for modules with a kernel or a scale, and a bias.
_BLOCK = {
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
_EMBEDDINGS = {"encoder": "source_embed", "decoder": "target_embed"}
_MODULES: dict[str, str] = {}
_ARRAYS = {"shared.weight": "embedding", "final_logits_bias": "logits_bias"}
for _part, _embedding in _EMBEDDINGS.items():
    _MODULES |= mapping.in_blocks(
        _BLOCK, f"{_part}.layers.{{}}.", f"{_part}/block_{{}}/"
    )
    _MODULES[f"{_part}.layernorm_embedding"] = f"{_embedding}/norm"
    _MODULES[f"{_part}.layer_norm"] = f"{_part}/norm"
    _ARRAYS[f"{_part}.embed_positions.weight"] = f"{_embedding}/positions/table"
# Copies of the shared embedding table in some files.
_TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def to_ours(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename weights of BART, mBART or Marian to those of a `Seq2Seq`.

    BART needs ``activation="gelu", positions="learned", position_offset=2,
    scale_embedding=False, embedding_norm=True, logits_bias=True``; mBART has the same
    names and also needs ``pre_norm=True``. Marian, without the positions in its files,
    needs ``positions="marian", logits_bias=True``.

    Args:
      arrays: arrays by their names in `BartForConditionalGeneration`.

    Returns:
      Arrays by our paths, such as ``encoder/block_0/mlp/mlp_in/kernel``.

    Raises:
      ValueError: a name is not that of a parameter.
    """
    plain = {name: name.removeprefix("model.") for name in arrays}
    kept = {plain[name]: x for name, x in arrays.items() if plain[name] not in _TIED}
    names = _names(kept)
    for name, short in plain.items():
        if short in kept and short not in names:
            raise ValueError(f"no parameter of an encoder-decoder is named {name!r}")
    found = mapping.renamed(kept, names)
    if "logits_bias" in found:
        found["logits_bias"] = found["logits_bias"].reshape(-1)
    return found


def to_theirs(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Invert `to_ours`.

    Example:
      >>> list(to_theirs({"target_embed/norm/scale": np.ones(2)}))
      ['model.decoder.layernorm_embedding.weight']
    """
    found = mapping.renamed(arrays, mapping.inverted(_names(arrays)))
    theirs = {f"model.{name}": x for name, x in found.items()}
    if (bias := theirs.pop("model.final_logits_bias", None)) is not None:
        theirs["final_logits_bias"] = bias[None]
    return theirs


def _names(names: Iterable[str]) -> dict[str, str]:
    return mapping.parameter_names(_MODULES, _ARRAYS, mapping.layer_numbers(names))


def encoder_decoder_config(module: Seq2Seq) -> dict[str, Any]:
    """Return the fields of config.json that BART and Marian share."""
    size, rates = module.size, module.rates
    return {
        "vocab_size": module.vocab_size,
        "d_model": size.width,
        "encoder_layers": size.encoder_layers,
        "decoder_layers": size.decoder_layers,
        "num_hidden_layers": size.encoder_layers,
        "encoder_ffn_dim": size.mlp_width,
        "decoder_ffn_dim": size.mlp_width,
        "dropout": rates.dropout,
        "attention_dropout": rates.attention,
        "activation_dropout": rates.activation,
        "encoder_layerdrop": rates.layer,
        "decoder_layerdrop": rates.layer,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


def fit(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Truncate the rows, or pad them with zeros; None if shapes differ too much."""
    rows, wanted = array.shape[0], shape[0]
    if array.shape[1:] != shape[1:] or abs(rows - wanted) >= _ROUNDED:
        return None
    fitted = np.zeros(shape, array.dtype)
    fitted[: min(rows, wanted)] = array[:wanted]
    return fitted
