"""Makes tests/parity/seq2seq: weights of BART and Marian in PyTorch, their logits.

    make parity

Weights are random, every array of them, so that no name can take another's place.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
)

FOLDER = Path(__file__).parent / "seq2seq"
SHARED = {
    "vocab_size": 24,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}
MODELS = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SHARED)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**SHARED)),  # pre-norm
    "marian": lambda: MarianMTModel(
        MarianConfig(
            **SHARED,
            scale_embedding=True,
            activation_function="relu",
            decoder_start_token_id=0,
        )
    ),
}


def build(make):
    """The model, every stored array random, the bias of the output too."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if isinstance(model, MarianMTModel) and "embed_positions" in name:
                continue  # sinusoids
            x.copy_(0.5 * torch.randn_like(x))
    return model


def main():
    """Writes one file per model."""
    FOLDER.mkdir(exist_ok=True)
    src = torch.randint(1, SHARED["vocab_size"], (3, 7))
    where = torch.arange(7)[None] < torch.tensor([[7], [4], [1]])
    inputs = torch.randint(1, SHARED["vocab_size"], (3, 5))
    for name, make in MODELS.items():
        model = build(make)
        logits = model(
            input_ids=src, attention_mask=where.int(), decoder_input_ids=inputs
        ).logits
        arrays = {
            f"weights/{k}": v
            for k, v in model.state_dict().items()
            if not any(copy in k for copy in ("embed_tokens", "lm_head"))
        }
        arrays |= {"src": src, "where": where, "inputs": inputs, "logits": logits}
        found = {k: v.detach().numpy() for k, v in arrays.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", **found)


if __name__ == "__main__":
    main()
