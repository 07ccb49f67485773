"""Import and export of BART weights in Hugging Face's format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rdrop_jax.core.passes import Params
from rdrop_jax.data.tokenizers import Vocabulary
from rdrop_jax.errors import InputError
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.pretrained import weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.seq2seq import weight_names


def family(
    module: Seq2Seq, vocabulary: Vocabulary, generation: Mapping[str, Any]
) -> Family:
    """Make the import and export functions for parameters of a BART.

    Args:
      module: the model.
      vocabulary: vocabulary of the run; its tokenizer is exported with the weights.
      generation: content of generation_config.json, without token ids.

    Returns:
      The family.
    """
    return Family(
        read=read,
        save=lambda params, folder, format: save(
            params, folder, module, vocabulary, generation
        ),
        formats=("safetensors",),
        facts=_facts(module, vocabulary),
        resize={"embedding": weight_names.fit, "logits_bias": weight_names.fit},
        reinit=("logits_bias",),  # files of BartModel have none
    )


def _facts(module: Seq2Seq, vocabulary: Vocabulary) -> dict[str, Any]:
    special = vocabulary.special
    return {
        "model_type": "bart",
        "activation_function": module.activation,
        "scale_embedding": module.scale_embedding,
        "encoder_attention_heads": module.size.heads,
        "decoder_attention_heads": module.size.heads,
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "decoder_start_token_id": special.start,
    }


def read(path: Path) -> Weights:
    """Read a .safetensors file or a folder, and rename its weights to our names.

    Raises:
      InputError: the file is damaged or is not a BART.
    """
    stored = weight_files.read(path)
    try:
        arrays = weight_names.to_ours(stored.arrays)
    except ValueError as error:
        raise InputError(f"init_from: {path}: expected BART: {error}") from error
    notes = [] if stored.config else ["no config.json: heads and ids are not checked"]
    return Weights(arrays, stored.config, tuple(notes), stored.sha256)


def save(
    params: Params,
    folder: Path,
    module: Seq2Seq,
    vocabulary: Vocabulary,
    generation: Mapping[str, Any],
) -> None:
    """Write parameters and tokenizer in the format of transformers.

    Args:
      params: parameters of ``module``.
      folder: output folder.
      module: the model.
      vocabulary: vocabulary of the run.
      generation: see `family`.
    """
    special = vocabulary.special
    ids = {
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
        "decoder_start_token_id": special.start,
        "forced_bos_token_id": special.bos,
        "forced_eos_token_id": special.eos,
    }
    config = weight_names.encoder_decoder_config(module) | {
        "architectures": ["BartForConditionalGeneration"],
        "max_position_embeddings": module.max_length,
    }
    config |= _facts(module, vocabulary) | ids
    ours: dict[str, np.ndarray] = jax.device_get(flatten(params))
    weight_files.write(weight_names.to_theirs(ours), folder, config=config)
    # Tokens that our beam search never generates.
    never = {"suppress_tokens": [special.pad, special.unk]}
    made = dict(generation) | ids | never
    weight_files.write_json(folder / "generation_config.json", made)
    text = json.dumps(json.loads(vocabulary.text), indent=2, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    settings = {
        "tokenizer_class": "BartTokenizer",
        "model_max_length": module.max_length,
    }
    weight_files.write_json(folder / "tokenizer_config.json", settings)
