"""BERT, RoBERTa, MPNet and DeBERTa: construction, and Hugging Face's weights."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from rdrop_jax.core.passes import Params
from rdrop_jax.data import tokenizer_files
from rdrop_jax.errors import InputError
from rdrop_jax.models.encoder import (
    NORM_EPS,
    NUM_TYPES,
    PAD_ID,
    SIZES,
    Classifier,
    Encoder,
)
from rdrop_jax.models.relative import MPNET_BUCKETS
from rdrop_jax.models.sizes import Size
from rdrop_jax.pretrained import mapping, text_encoders, weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.field_checks import (
    check_choices,
    check_heads,
    check_least,
    resized,
)

_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "mpnet": "MPNet",
    "deberta-v2": "DebertaV2",
}
# Prefix of published names, which also selects names and special tokens.
_PREFIX = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "mpnet": "mpnet",
    "deberta-v2": "deberta",
}
_PROBLEMS = {
    "classes": "single_label_classification",
    "multilabel": "multi_label_classification",
    "numbers": "regression",
}
# Label name of a regression head, which has a single row.
_NUMBER = ("LABEL_0",)
# Published names to ours, for modules with a kernel or a scale, and a bias.
_QKV = ("query", "key", "value")
_ATTENTION_OUT = {
    "attention.output.dense": "attention/attention_out",
    "attention.output.LayerNorm": "attention_norm",
}
_ATTENTION = {
    **{f"attention.self.{x}": f"attention/{x}" for x in _QKV},
    **_ATTENTION_OUT,
}
_ATTENTIONS = {
    "bert": _ATTENTION,
    "roberta": _ATTENTION,
    "mpnet": {
        **{f"attention.attn.{x[0]}": f"attention/{x}" for x in _QKV},
        "attention.attn.o": "attention/attention_out",
        "attention.LayerNorm": "attention_norm",
    },
    "deberta": {
        **{f"attention.self.{x}_proj": f"attention/{x}" for x in _QKV},
        **_ATTENTION_OUT,
    },
}
_MLP = {
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
    "output.LayerNorm": "mlp_norm",
}
_TABLES = {
    "embeddings.word_embeddings.weight": "encoder/tokens",
    "embeddings.position_embeddings.weight": "encoder/positions",
    "embeddings.token_type_embeddings.weight": "encoder/types",
    "encoder.relative_attention_bias.weight": "encoder/relative_bias",
    "encoder.rel_embeddings.weight": "encoder/relative",
}
_NORMS = {
    "embeddings.LayerNorm": "encoder/embedding_norm",
    "encoder.LayerNorm": "encoder/relative_norm",
}
_TWO_LAYERS = {"classifier.dense": "pooler", "classifier.out_proj": "head"}
_POOLED = {"pooler.dense": "pooler", "classifier": "head"}
_HEADS = {
    "bert": _POOLED,
    "roberta": _TWO_LAYERS,
    "mpnet": _TWO_LAYERS,
    "deberta": _POOLED,
}
_BERT_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_ROBERTA_TOKENS = ("<unk>", "</s>", "<pad>", "<s>", "<mask>")
_SPECIAL = {
    "bert": _BERT_TOKENS,
    "roberta": _ROBERTA_TOKENS,
    "mpnet": ("[UNK]", *_ROBERTA_TOKENS[1:]),
    "deberta": _BERT_TOKENS,
}
# Pretraining heads, often tied to the token embeddings, and buffers without weights.
_UNUSED = (
    "cls.",
    "lm_head.",
    "lm_predictions.",
    "mask_predictions.",
    "embeddings.position_embeddings.",  # in files of DeBERTa
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.",
)


def make_model(config: ConfigDict) -> Classifier:
    """Build the module described by ``config.model``.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    m, data = config.model, config.data
    check_choices({"model.size": (m.size, tuple(SIZES))})
    counts = {
        f"model.{k}": m[k] for k in (*Size._fields, "vocab_size", "max_positions")
    }
    counts["model.position_buckets"] = m.position_buckets
    counts |= {f"data.{k}": data[k] for k in ("max_length", "buckets")}
    check_least({field: (value, 1) for field, value in counts.items()})
    size = resized(m, SIZES[m.size])
    check_heads(size)
    longest = math.inf if m.name == "deberta-v2" else m.max_positions
    if not 8 <= data.max_length <= longest:
        raise InputError(
            "data.max_length: expected 8 to model.max_positions = "
            f"{m.max_positions}, found {data.max_length}"
        )
    r = config.rdrop
    plain = (r.label_smoothing, r.divergence, r.stop_gradient)
    if data.labels not in ("classes", "words") and plain != (
        0.0,
        "symmetric_kl",
        "none",
    ):
        raise InputError(
            "rdrop.label_smoothing, rdrop.divergence, rdrop.stop_gradient: expected "
            f"0.0, symmetric_kl and none for data.labels={data.labels}, found {plain}"
        )
    encoder = Encoder(
        kind=m.name,
        size=size,
        vocab_size=m.vocab_size,
        max_positions=m.max_positions,
        num_types=NUM_TYPES[m.name],
        pad_id=PAD_ID[m.name],
        norm_eps=NORM_EPS[m.name] if m.norm_eps is None else m.norm_eps,
        dropout=m.dropout,
        attention_dropout=m.attention_dropout,
        dtype=jnp.dtype(m.dtype),
        remat=m.remat,
        masks=m.masks,
        position_buckets=m.position_buckets,
    )
    return Classifier(
        encoder, max(len(data.classes), 1), per_token=data.labels == "words"
    )


def make_family(
    module: Classifier, data: ConfigDict, tokenizer: Callable[[], Tokenizer]
) -> Family:
    """Make the import and export functions for parameters of an encoder.

    Args:
      module: the model.
      data: ``config.data``: type of the labels and class names.
      tokenizer: loads the tokenizer of the run, which is exported with the weights.

    Returns:
      The family; a missing or mismatched head or pooler is re-initialized.
    """
    encoder = module.encoder
    return Family(
        read=lambda path: read(path, module),
        save=lambda params, folder, format: save(
            params, folder, module, data.labels, data.classes, tokenizer()
        ),
        formats=("safetensors",),
        facts={
            "model_type": encoder.kind,
            "hidden_act": "gelu",
            "model.heads": encoder.size.heads,
            "pad_token_id": encoder.pad_id,
        },
        reinit=("head", "pooler"),
        classes=tuple(data.classes) or _NUMBER,
    )


def read(path: Path, module: Classifier) -> Weights:
    """Read a .safetensors file or a folder, and rename its weights to our names.

    Args:
      path: path of a file or folder.
      module: the model.

    Returns:
      The weights; unknown names are unchanged.

    Raises:
      InputError: the file is damaged or has another format.
    """
    encoder = module.encoder
    stored = weight_files.read(path)
    arrays, unused = to_ours(stored.arrays, encoder.kind, per_token=module.per_token)
    notes = [f"not loaded, because unused: {name}" for name in sorted(unused)]
    return mapping.encoder_weights(arrays, stored, encoder.norm_eps, path, notes)


def save(
    params: Params,
    folder: Path,
    module: Classifier,
    labels: str,
    classes: Sequence[str],
    tokenizer: Tokenizer,
) -> None:
    """Write parameters and tokenizer in the format of transformers.

    Args:
      params: parameters of ``module``.
      folder: output folder.
      module: the model.
      labels: see `family`.
      classes: see `family`.
      tokenizer: tokenizer of the run.
    """
    ours: dict[str, np.ndarray] = jax.device_get(flatten(params))
    kind = module.encoder.kind
    arrays = to_theirs(ours, kind, per_token=module.per_token)
    weight_files.write(arrays, folder, config=_config(module, labels, classes))
    text = tokenizer.to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    # Other tokenizer classes replace the normalizer of tokenizer.json.
    named = f"{_CLASSES[kind]}Tokenizer" if kind in ("bert", "roberta") else ""
    settings: dict[str, Any] = {"tokenizer_class": named or "PreTrainedTokenizerFast"}
    if kind == "bert":
        settings |= tokenizer_files.settings_of(tokenizer)
    if not module.encoder.num_types:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    settings |= dict(zip(names, _SPECIAL[_PREFIX[kind]], strict=True))
    settings["model_max_length"] = module.encoder.max_positions
    weight_files.write_json(folder / "tokenizer_config.json", settings)


def _config(module: Classifier, labels: str, classes: Sequence[str]) -> dict[str, Any]:
    e = module.encoder
    names = classes or _NUMBER
    absolute = e.kind in ("bert", "deberta-v2")
    rows = e.max_positions + (0 if absolute else e.pad_id + 1)
    head = "TokenClassification" if module.per_token else "SequenceClassification"
    return {
        "architectures": [f"{_CLASSES[e.kind]}For{head}"],
        "model_type": e.kind,
        "vocab_size": e.vocab_size,
        "max_position_embeddings": rows,
        **_relative_config(e),
        "pad_token_id": e.pad_id,
        **({"problem_type": _PROBLEMS[labels]} if labels in _PROBLEMS else {}),
    } | mapping.encoder_config(e, module.outputs, names)


def _relative_config(e: Encoder) -> dict[str, Any]:
    """Return the fields of config.json for types and relative positions."""
    if e.kind == "mpnet":
        return {"relative_attention_num_buckets": MPNET_BUCKETS}
    if e.kind == "deberta-v2":
        fixed = text_encoders.FIXED["deberta-v2"]
        fields = {name: wanted for name, (wanted, _) in fixed.items()}
        return fields | {"position_buckets": e.position_buckets}
    return {"type_vocab_size": e.num_types}


def to_ours(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rename weights of transformers to our names, and transpose kernels.

    Args:
      arrays: arrays by their names in transformers.
      kind: value of model_type.
      per_token: True if the model has a head per token, and no pooler.

    Returns:
      Arrays by our paths, such as ``encoder/block_0/mlp_in/kernel``, with unknown names
      unchanged; and the names that are ignored on purpose.

    Example:
      >>> import numpy as np
      >>> found, unused = to_ours({"classifier.bias": np.zeros(2)}, "bert")
      >>> list(found), unused
      (['head/bias'], [])
    """
    known = _names(arrays, kind, per_token)
    plain = {theirs: _plain(theirs, kind) for theirs in arrays}
    unused = [
        theirs
        for theirs, name in plain.items()
        if name not in known and name.startswith(_UNUSED)
    ]
    names = {theirs: known.get(name, theirs) for theirs, name in plain.items()}
    kept = {theirs: x for theirs, x in arrays.items() if theirs not in unused}
    return mapping.renamed(kept, names), unused


def to_theirs(
    arrays: Mapping[str, np.ndarray], kind: str, *, per_token: bool = False
) -> dict[str, np.ndarray]:
    """Invert `to_ours`, with the name prefix of models with a head."""
    names = mapping.inverted(_names(arrays, kind, per_token))
    outside = ("classifier", "pooler") if kind == "deberta-v2" else "classifier"
    return {
        name if name.startswith(outside) else f"{_PREFIX[kind]}.{name}": x
        for name, x in mapping.renamed(arrays, names).items()
    }


def _plain(name: str, kind: str) -> str:
    """Remove the prefix, and replace the old names of a scale and a bias."""
    name = name.removeprefix(f"{_PREFIX[kind]}.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _names(names: Iterable[str], kind: str, per_token: bool) -> dict[str, str]:
    """Map all transformers names, without prefix, to ours."""
    family = _PREFIX[kind]
    modules = {"classifier": "head"} if per_token else dict(_HEADS[family])
    modules |= _NORMS
    for theirs, ours in (_ATTENTIONS[family] | _MLP).items():
        modules[f"encoder.layer.{{}}.{theirs}"] = f"encoder/block_{{}}/{ours}"
    layers = mapping.layer_numbers(names)
    return mapping.parameter_names(modules, _TABLES, layers)
