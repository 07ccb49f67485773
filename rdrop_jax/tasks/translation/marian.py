"""Import and export of Marian weights (opus-mt) in Hugging Face's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rdrop_jax.core.passes import Params
from rdrop_jax.data.tokenizers import Vocabularies
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.pretrained import weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.seq2seq import weight_names
from rdrop_jax.tasks.translation import sentencepieces

# Tables of sinusoids in some files; the model computes them.
_SINUSOIDS = "embed_positions.weight"
# Spellings of an activation in config.json, by our name.
_ACTIVATIONS = {"silu": "swish"}


def family(
    module: Seq2Seq, vocabularies: Vocabularies, generation: Mapping[str, Any]
) -> Family:
    """Make the import and export functions for parameters of a Marian model.

    Args:
      module: the model.
      vocabularies: vocabularies of the run, which are exported with the weights.
      generation: content of generation_config.json, without token ids.

    Returns:
      The family.
    """
    return Family(
        read=read,
        save=lambda params, folder, format: save(
            params, folder, module, vocabularies, generation
        ),
        formats=("safetensors",),
        facts=_facts(module, vocabularies),
        resize=dict.fromkeys(("embedding", "logits_bias"), weight_names.fit),
        reinit=("logits_bias",),
    )


def _facts(module: Seq2Seq, vocabularies: Vocabularies) -> dict[str, Any]:
    special = vocabularies.target.special
    return {
        "model_type": "marian",
        "activation_function": _ACTIVATIONS.get(module.activation, module.activation),
        "scale_embedding": module.scale_embedding,
        "static_position_embeddings": True,
        "normalize_before": module.pre_norm,
        "normalize_embedding": module.embedding_norm,
        "share_encoder_decoder_embeddings": True,
        "encoder_attention_heads": module.size.heads,
        "decoder_attention_heads": module.size.heads,
        "pad_token_id": special.pad,
        "eos_token_id": special.eos,
        "decoder_start_token_id": special.start,
    }


def read(path: Path) -> Weights:
    """Read a .safetensors file or a folder, and rename its weights to our names.

    Raises:
      InputError: the file is damaged or is not a Marian model.
    """
    stored = weight_files.read(path)
    learned = {k: x for k, x in stored.arrays.items() if not k.endswith(_SINUSOIDS)}
    try:
        arrays = weight_names.to_ours(learned)
    except ValueError as error:
        raise InputError(f"init_from: {path}: expected Marian: {error}") from error
    facts = dict(stored.config)
    if (name := facts.get("activation_function")) in _ACTIVATIONS:
        facts["activation_function"] = _ACTIVATIONS[name]
    notes = [] if facts else ["no config.json: heads and ids are not checked"]
    return Weights(arrays, facts, tuple(notes), stored.sha256)


def save(
    params: Params,
    folder: Path,
    module: Seq2Seq,
    vocabularies: Vocabularies,
    generation: Mapping[str, Any],
) -> None:
    """Write parameters and vocabularies in the format of transformers.

    Args:
      params: parameters of ``module``.
      folder: output folder.
      module: the model.
      vocabularies: vocabularies of the run.
      generation: see `family`.
    """
    special = vocabularies.target.special
    ids = {
        "pad_token_id": special.pad,
        "eos_token_id": special.eos,
        "decoder_start_token_id": special.start,
        "forced_eos_token_id": special.eos,
    }
    config = weight_names.encoder_decoder_config(module) | {
        "architectures": ["MarianMTModel"],
        "decoder_vocab_size": module.vocab_size,
        "max_position_embeddings": max(512, module.max_length),
    }
    config |= _facts(module, vocabularies) | ids
    ours: dict[str, np.ndarray] = jax.device_get(flatten(params))
    weight_files.write(weight_names.to_theirs(ours), folder, config=config)
    # Tokens that our beam search never generates.
    never = {"suppress_tokens": [special.pad, special.unk]}
    write_json = weight_files.write_json
    write_json(folder / "generation_config.json", dict(generation) | ids | never)
    write_json(folder / "vocab.json", sentencepieces.write(vocabularies, folder))
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "separate_vocabs": False,
        "model_max_length": module.max_length,
    }
    write_json(folder / "tokenizer_config.json", settings)
