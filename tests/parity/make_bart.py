"""Makes tests/parity/bart: a BART in PyTorch, what it says and what it generates.

    make parity

Weights are random, every array of them. Sources are of several lengths; their summaries
are searched with a beam of 4, limits of length, no trigram twice, and forced ends.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration

FOLDER = Path(__file__).parent / "bart"
CONFIG = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 24,
    "attn_implementation": "eager",
}
GENERATION = {
    "num_beams": 4,
    "early_stopping": True,
    "length_penalty": 2.0,
    "no_repeat_ngram_size": 3,
    "min_length": 6,
    "max_length": 16,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "suppress_tokens": [1, 3],  # padding and the unknown, never written here
}
ROWS, LONGEST = 64, 18


def build():
    """The model, every stored array random; ends are likely enough to come early."""
    torch.manual_seed(1)
    model = BartForConditionalGeneration(BartConfig(**CONFIG)).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            # Much of the source, so that summaries differ.
            scale = 1.5 if "encoder_attn." in name else 0.5
            x.copy_(one + scale * torch.randn_like(x))
        model.final_logits_bias[0, 2] = 3.0
    return model


def sources():
    """Texts of 1 to 16 tokens between <s> and </s>, padded."""
    rng = np.random.default_rng(0)
    lengths = 1 + np.arange(ROWS) % (LONGEST - 2)
    ids = np.full((ROWS, LONGEST), 1)
    for row, length in enumerate(lengths):
        text = rng.integers(4, CONFIG["vocab_size"], length)
        ids[row, : length + 2] = [0, *text, 2]
    return ids, ids != 1


def main():
    """Writes the folder of the model, and arrays."""
    FOLDER.mkdir(exist_ok=True)
    model, (src, where) = build(), sources()
    inputs = np.random.default_rng(1).integers(0, CONFIG["vocab_size"], (ROWS, 6))
    given = {
        "input_ids": torch.tensor(src),
        "attention_mask": torch.tensor(where).int(),
    }
    with torch.no_grad():
        out = model(**given, decoder_input_ids=torch.tensor(inputs))
        found = model.generate(**given, **GENERATION)
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    (FOLDER / "search.json").write_text(json.dumps(GENERATION, indent=1) + "\n")
    np.savez_compressed(
        FOLDER / "arrays.npz",
        src=src.astype(np.int32),
        where=where,
        inputs=inputs.astype(np.int32),
        encoder=out.encoder_last_hidden_state.numpy(),
        logits=out.logits.numpy(),
        generated=found.numpy().astype(np.int32),
    )
    print("tokens before ends:", np.bincount((found[:, 1:] == 2).int().argmax(1)))
    print("different:", len(np.unique(found.numpy(), axis=0)))


if __name__ == "__main__":
    main()
