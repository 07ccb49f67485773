"""Writes tests/parity/encoder/: what transformers computes with random weights.

Run by hand in an environment with torch 2.13 and transformers 5.23:
    python tests/parity/make_encoder.py
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "num_labels": 3,
}
# Longer than the exact distances of relative positions.
ODD = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 28,
    "max_position_embeddings": 21,
}
MODELS = {
    "bert": (transformers.BertConfig, {"pad_token_id": 0}),
    "roberta": (
        transformers.RobertaConfig,
        {
            "pad_token_id": 1,
            "type_vocab_size": 1,
            "max_position_embeddings": 18,
            "layer_norm_eps": 1e-5,
        },
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        {
            "pad_token_id": 1,
            "type_vocab_size": 1,
            "max_position_embeddings": 18,
            "layer_norm_eps": 1e-5,
        },
    ),
    "mpnet": (
        transformers.MPNetConfig,
        ODD | {"pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        ODD
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "position_buckets": 7,
        },
    ),
    "modernbert": (
        transformers.ModernBertConfig,
        ODD
        | {
            "num_hidden_layers": 4,
            "pad_token_id": 3,
            "local_attention": 6,
            "classifier_pooling": "mean",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 900.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
            },
            **{f"{name}_token_id": 0 for name in ("bos", "eos", "cls", "sep")},
        },
    ),
}


_CONV = {"conv_kernel_size": 3, "conv_act": "gelu"}
MODELS["deberta-v2-conv"] = (
    transformers.DebertaV2Config,
    MODELS["deberta-v2"][1] | _CONV,
)


def inputs(kind, pad):
    time = 15 if "hidden_size" in MODELS[kind][1] else 12
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, size=(4, time))
    where = np.arange(time) < np.array([time, 7, 3, 1])[:, None]
    second = (np.arange(time) >= 5) & where & (kind == "bert")
    return {
        "tokens": np.where(where, tokens, pad),
        "types": second.astype(np.int64),
        "where": where,
    }


def main():
    folder = Path(__file__).parent / "encoder"
    for kind, (config_class, more) in MODELS.items():
        torch.manual_seed(0)
        config = config_class(**SHAPE | more)
        prefix = config_class.__name__.removesuffix("Config")
        batch = inputs(kind, config.pad_token_id)
        asked = {
            "input_ids": torch.tensor(batch["tokens"]),
            "attention_mask": torch.tensor(batch["where"]).long(),
        }
        if "type_vocab_size" in config.to_dict():
            asked["token_type_ids"] = torch.tensor(batch["types"])
        wanted = {}
        for head in ("SequenceClassification", "TokenClassification"):
            torch.manual_seed(1)
            model = getattr(transformers, f"{prefix}For{head}")(config).eval()
            generator = torch.Generator().manual_seed(2)
            with torch.no_grad():
                # As made, biases are 0, scales 1 and weights too small to matter.
                for p in model.parameters():
                    p.add_(torch.randn(p.shape, generator=generator) * 0.3)
                out = model(**asked, output_hidden_states=True)
            wanted[f"{head}/logits"] = out.logits.numpy()
            for i, state in enumerate(out.hidden_states):
                wanted[f"{head}/hidden_{i}"] = state.numpy()
            place = folder / f"{kind}-{head}"
            place.mkdir(parents=True, exist_ok=True)
            weights = {k: v.contiguous() for k, v in model.state_dict().items()}
            save_file(weights, place / "model.safetensors", {"format": "pt"})
            text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"
            (place / "config.json").write_text(text)
        np.savez_compressed(folder / f"{kind}.npz", **batch, **wanted)


if __name__ == "__main__":
    main()
