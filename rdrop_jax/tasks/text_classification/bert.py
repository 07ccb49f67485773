"""Text encoders: construction, and weights in Hugging Face's format."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from rdrop_jax.models.modernbert import ModernEncoder, Pattern
from rdrop_jax.models.sizes import Size
from rdrop_jax.pretrained import mapping, text_encoders, weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.pretrained.text_names import PREFIX, to_ours, to_theirs
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
    "modernbert": "ModernBert",
}
_PROBLEMS = {
    "classes": "single_label_classification",
    "multilabel": "multi_label_classification",
    "numbers": "regression",
}
# Fields of config.json with other names for ModernBERT.
_NOT_MODERN = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "layer_norm_eps",
)
# Label name of a regression head, which has a single row.
_NUMBER = ("LABEL_0",)
_BERT_TOKENS = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_ROBERTA_TOKENS = ("<unk>", "</s>", "<pad>", "<s>", "<mask>")
_SPECIAL = {
    "bert": _BERT_TOKENS,
    "roberta": _ROBERTA_TOKENS,
    "mpnet": ("[UNK]", *_ROBERTA_TOKENS[1:]),
    "deberta": _BERT_TOKENS,
    "model": _BERT_TOKENS,
}


def pad_id(model: ConfigDict) -> int:
    """Return the id of the padding token: ``model.pad_id``, or that of the family."""
    return PAD_ID[model.name] if model.pad_id is None else model.pad_id


def make_model(config: ConfigDict) -> Classifier:
    """Build the module described by ``config.model``.

    Raises:
      InputError: a field is invalid; names the field, expected and found values.
    """
    m, data = config.model, config.data
    check_choices(
        {
            "model.size": (m.size, tuple(SIZES)),
            "model.pooling": (m.pooling, ("cls", "mean")),
        }
    )
    counts = {
        f"model.{k}": m[k] for k in (*Size._fields, "vocab_size", "max_positions")
    }
    counts |= {f"model.{k}": m[k] for k in ("position_buckets", *Pattern._fields)}
    counts |= {f"data.{k}": data[k] for k in ("max_length", "buckets")}
    least = {field: (value, 1) for field, value in counts.items()}
    check_least(least | {"model.position_buckets": (m.position_buckets, 2)})
    if m.conv_kernel and (m.conv_kernel < 0 or not m.conv_kernel % 2):
        raise InputError(
            f"model.conv_kernel: expected 0 or an odd number, found {m.conv_kernel}"
        )
    size = resized(m, SIZES[m.size])
    check_heads(size)
    check_least({"data.max_length": (data.max_length, 8)})
    if m.name != "deberta-v2" and data.max_length > m.max_positions:
        raise InputError(
            "data.max_length: expected at most model.max_positions = "
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
    return Classifier(
        _encoder(m, size),
        max(len(data.classes), 1),
        per_token=data.labels == "words",
        pooling=m.pooling,
    )


def _encoder(m: ConfigDict, size: Size) -> Encoder | ModernEncoder:
    shared: dict[str, Any] = {
        "size": size,
        "vocab_size": m.vocab_size,
        "max_positions": m.max_positions,
        "pad_id": pad_id(m),
        "norm_eps": NORM_EPS[m.name] if m.norm_eps is None else m.norm_eps,
        "dropout": m.dropout,
        "attention_dropout": m.attention_dropout,
        "dtype": jnp.dtype(m.dtype),
        "remat": m.remat and m.remat_policy,
        "masks": m.masks,
        "fused_attention": m.fused_attention,
    }
    if m.name == "modernbert":
        if size.width // size.heads % 2:
            raise InputError(
                f"model.heads: expected heads of an even width, got {size.heads} heads "
                f"of width {size.width // size.heads}"
            )
        pattern = Pattern(*(m[name] for name in Pattern._fields))
        return ModernEncoder(**shared, pattern=pattern)
    shared |= {"position_buckets": m.position_buckets, "conv_kernel": m.conv_kernel}
    return Encoder(m.name, **shared, num_types=NUM_TYPES[m.name])


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
        reinit=("head", "pooler", "pooler_norm"),
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
    if encoder.kind == "modernbert":
        eps = stored.config.get("norm_eps", encoder.norm_eps)
        stored = replace(stored, config={**stored.config, "layer_norm_eps": eps})
        notes.append(
            "ModernBERT is published with dropout rates of 0; this run has "
            f"model.dropout={encoder.dropout} and "
            f"model.attention_dropout={encoder.attention_dropout}"
        )
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
      labels: ``data.labels``.
      classes: class names by id.
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
    settings |= dict(zip(names, _SPECIAL[PREFIX[kind]], strict=True))
    settings["model_max_length"] = module.encoder.max_positions
    weight_files.write_json(folder / "tokenizer_config.json", settings)


def _config(module: Classifier, labels: str, classes: Sequence[str]) -> dict[str, Any]:
    e = module.encoder
    names = classes or _NUMBER
    after = e.kind in ("roberta", "xlm-roberta", "mpnet")  # positions after padding
    rows = e.max_positions + (e.pad_id + 1 if after else 0)
    head = "TokenClassification" if module.per_token else "SequenceClassification"
    shared = mapping.encoder_config(e, module.outputs, names)
    if e.kind == "modernbert":
        shared = {name: x for name, x in shared.items() if name not in _NOT_MODERN}
    return shared | {
        "architectures": [f"{_CLASSES[e.kind]}For{head}"],
        "model_type": e.kind,
        "vocab_size": e.vocab_size,
        "max_position_embeddings": rows,
        **_family_config(module),
        "pad_token_id": e.pad_id,
        **({"problem_type": _PROBLEMS[labels]} if labels in _PROBLEMS else {}),
    }


def _family_config(module: Classifier) -> dict[str, Any]:
    """Return the fields of config.json that not all text encoders have."""
    e = module.encoder
    fixed = text_encoders.FIXED[e.kind]
    fields = {name: wanted for name, (wanted, _) in fixed.items()}
    if isinstance(e, ModernEncoder):
        dropouts = ("embedding_dropout", "mlp_dropout", "classifier_dropout")
        return {
            **fields,
            **dict.fromkeys(dropouts, e.dropout),
            **{text_encoders.PATTERN[k]: v for k, v in e.pattern._asdict().items()},
            "attention_dropout": e.attention_dropout,
            "hidden_activation": "gelu",
            "norm_eps": e.norm_eps,
            "classifier_pooling": module.pooling,
        }
    if e.kind == "deberta-v2":
        fields["position_buckets"] = e.position_buckets
        fields |= {"conv_kernel_size": e.conv_kernel, "conv_act": "gelu"}
    return fields | ({"type_vocab_size": e.num_types} if e.num_types else {})
