"""Export of `rdrop_jax.models.seq2seq.Seq2Seq` to a CTranslate2 model on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.converters import utils
from ctranslate2.specs import common_spec, transformer_spec

from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.models.embeddings import sinusoids
from rdrop_jax.models.seq2seq import Seq2Seq


def tokens_of(size: int, options: SearchOptions) -> list[str]:
    """Return the token names of all ids."""
    names = [str(i) for i in range(size)]
    names[options.pad], names[options.bos] = "<pad>", "<s>"
    names[options.eos], names[options.forbid[0]] = "</s>", "<unk>"
    return names


def save(
    model: Seq2Seq, params: Mapping[str, Any], options: SearchOptions, folder: Path
) -> None:
    """Write a post-norm ReLU model with the special tokens of ``options``."""
    size = model.size
    spec = transformer_spec.TransformerSpec.from_config(
        (size.encoder_layers, size.decoder_layers),
        size.heads,
        pre_norm=False,
        activation=common_spec.Activation.RELU,
    )
    sides = (
        (spec.encoder, "encoder", "source"),
        (spec.decoder, "decoder", "target"),
    )
    for side, name, embed in sides:
        side.scale_embeddings = size.width**0.5
        if model.positions == "learned":
            places = params[f"{embed}_embed"]["positions"]["table"]
        else:
            rows = model.max_length + model.position_offset
            places = sinusoids(rows, size.width, model.positions)
        side.position_encodings.encodings = np.asarray(places)[model.position_offset :]
        for layer, block in zip(side.layer, params[name].values(), strict=True):
            _block(layer, block)
    table = np.asarray(params["embedding"])
    source = table if model.share == "all" else params["source_embedding"]
    output = params["output"].T if model.share == "none" else table
    spec.encoder.embeddings[0].weight = np.asarray(source)
    spec.decoder.embeddings.weight = table
    spec.decoder.projection.weight = np.ascontiguousarray(output)
    if model.logits_bias:
        spec.decoder.projection.bias = np.asarray(params["logits_bias"])
    names = tokens_of(model.vocab_size, options)
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    start = names[options.bos]
    spec.config.decoder_start_token = spec.config.bos_token = start
    folder.mkdir(parents=True, exist_ok=True)
    spec.validate()
    spec.optimize()
    spec.save(str(folder))


def load(folder: Path, threads: int) -> ctranslate2.Translator:
    """Load the model in float32 on all threads."""
    return ctranslate2.Translator(
        str(folder),
        device="cpu",
        compute_type="float32",
        inter_threads=1,
        intra_threads=threads,
    )


def _block(layer: Any, params: Mapping[str, Any]) -> None:
    attention = layer.self_attention
    names = ("query", "key", "value")
    utils.fuse_linear(
        attention.linear[0], [_linear(params["attention"][n]) for n in names]
    )
    _into(attention.linear[1], params["attention"]["attention_out"])
    _norm(attention.layer_norm, params["attention_norm"])
    if "cross" in params:
        cross = layer.attention
        _into(cross.linear[0], params["cross"]["query"])
        known = [_linear(params["cross"][n]) for n in names[1:]]
        utils.fuse_linear(cross.linear[1], known)
        _into(cross.linear[2], params["cross"]["attention_out"])
        _norm(cross.layer_norm, params["cross_norm"])
    _into(layer.ffn.linear_0, params["mlp"]["mlp_in"])
    _into(layer.ffn.linear_1, params["mlp"]["mlp_out"])
    _norm(layer.ffn.layer_norm, params["mlp_norm"])


def _into(spec: Any, params: Mapping[str, Any]) -> None:
    spec.weight = np.ascontiguousarray(np.asarray(params["kernel"]).T)
    spec.bias = np.asarray(params["bias"])


def _linear(params: Mapping[str, Any]) -> Any:
    spec = common_spec.LinearSpec()
    _into(spec, params)
    return spec


def _norm(spec: Any, params: Mapping[str, Any]) -> None:
    spec.gamma = np.asarray(params["scale"])
    spec.beta = np.asarray(params["bias"])
