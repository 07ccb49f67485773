"""Import and export of BERT and RoBERTa weights in Hugging Face's format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from rdrop_jax.core.passes import Params
from rdrop_jax.data import tokenizer_files
from rdrop_jax.models.encoder import Classifier
from rdrop_jax.pretrained import head_classes as class_names
from rdrop_jax.pretrained import weight_files
from rdrop_jax.pretrained.initialize import Family, Weights, flatten
from rdrop_jax.tasks.text_classification.weight_names import to_ours, to_theirs

_CLASSES = {"bert": "Bert", "roberta": "Roberta"}
_PROBLEMS = {
    "classes": "single_label_classification",
    "multilabel": "multi_label_classification",
    "numbers": "regression",
}
# Label name of a regression head, which has a single row.
_NUMBER = ("LABEL_0",)


def family(
    module: Classifier,
    *,
    labels: str,
    classes: Sequence[str],
    tokenizer: Callable[[], Tokenizer],
) -> Family:
    """Make the import and export functions for parameters of an encoder.

    Args:
      module: the model.
      labels: "classes", "multilabel" or "numbers".
      classes: class names by id; empty for numbers.
      tokenizer: loads the tokenizer of the run, which is exported with the weights.

    Returns:
      The family; a missing or mismatched head or pooler is re-initialized.
    """
    encoder = module.encoder
    return Family(
        read=lambda path: read(path, module),
        save=lambda params, folder, format: save(
            params, folder, module, labels, classes, tokenizer()
        ),
        formats=("safetensors",),
        facts={
            "model_type": encoder.kind,
            "hidden_act": "gelu",
            "model.heads": encoder.size.heads,
            "pad_token_id": encoder.pad_id,
        },
        reinit=("head", "pooler"),
        classes=tuple(classes) or _NUMBER,
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
    arrays, beside = to_ours(stored.arrays, encoder.kind, per_token=module.per_token)
    notes = [f"not loaded, because unused: {name}" for name in sorted(beside)]
    known = {
        "model_type": "model_type",
        "hidden_act": "hidden_act",
        "model.heads": "num_attention_heads",
        "pad_token_id": "pad_token_id",
    }
    facts = {k: stored.config[v] for k, v in known.items() if v in stored.config}
    if not stored.config:
        notes.append("no config.json: model.heads and model.norm_eps are not checked")
    eps = stored.config.get("layer_norm_eps", encoder.norm_eps)
    if eps != encoder.norm_eps:
        notes.append(
            f"config.json has layer_norm_eps {eps}, here it is {encoder.norm_eps}: "
            f"outputs differ slightly; --config.model.norm_eps={eps} makes them equal"
        )
    where = f"{path}, config.json"
    named, more = class_names.of_head(arrays, stored.config, where)
    return Weights(arrays, facts, (*notes, *more), stored.sha256, named)


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
    special = {
        "bert": ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"),
        "roberta": ("<unk>", "</s>", "<pad>", "<s>", "<mask>"),
    }[kind]
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    settings: dict[str, Any] = {"tokenizer_class": f"{_CLASSES[kind]}Tokenizer"}
    if kind == "bert":
        settings |= tokenizer_files.settings_of(tokenizer)
    settings |= dict(zip(names, special, strict=True))
    settings["model_max_length"] = module.encoder.max_positions
    weight_files.write_json(folder / "tokenizer_config.json", settings)


def _config(module: Classifier, labels: str, classes: Sequence[str]) -> dict[str, Any]:
    e = module.encoder
    names = classes or _NUMBER
    rows = e.max_positions + (e.pad_id + 1 if e.kind == "roberta" else 0)
    head = "TokenClassification" if module.per_token else "SequenceClassification"
    return {
        "architectures": [f"{_CLASSES[e.kind]}For{head}"],
        "model_type": e.kind,
        "vocab_size": e.vocab_size,
        "hidden_size": e.size.width,
        "num_hidden_layers": e.size.layers,
        "num_attention_heads": e.size.heads,
        "intermediate_size": e.size.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": e.dropout,
        "attention_probs_dropout_prob": e.attention_dropout,
        "max_position_embeddings": rows,
        "type_vocab_size": e.num_types,
        "layer_norm_eps": e.norm_eps,
        "pad_token_id": e.pad_id,
        "num_labels": module.outputs,
        "problem_type": _PROBLEMS[labels],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "dtype": "float32",
    }
