"""Makes tests/parity/marian: a Marian model in PyTorch, its subwords and its searches.

    make parity

Weights are random, every array of them, and sizes are odd. The SentencePiece models are
trained on names of things.
"""

import contextlib
import json
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer

from rdrop_jax.tasks.translation import cldr

FOLDER = Path(__file__).parent / "marian"
SHAPE = {
    "d_model": 20,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 28,
    "decoder_ffn_dim": 28,
    "max_position_embeddings": 24,
    "activation_function": "swish",
    "scale_embedding": True,
    "attn_implementation": "eager",
}
GENERATION = {
    "num_beams": 4,
    "early_stopping": True,
    "length_penalty": 1.0,
    "max_length": 14,
}
ROWS, LONGEST = 64, 18
PARTS = [
    *(
        "a red heart",
        "Zürich",
        "euro",
        "▁",
        "__",
        "½ ﬁﬂ",
        "\uff21\uff22\uff23",
        "e\u0301",
        "ß",
        "İ",
    ),
    *("\u00a0", "  ", "\t", "\u200b", "\u200d", "\u00ad", "\u2028", "\u0085", "\ufeff"),
    *(
        "猫が好き",
        "한국어",
        "\u1112\u1161\u11ab",
        "हिन्दी",
        "עברית",
        "👩\u200d🚀",
        "🇩🇪",
        "\x00",
        "\x07",
    ),
    *(
        ">>fr<<",
        ">>",
        "<<",
        "<s>",
        "<0x0A>",
        "...",
        "…",
        "''",
        "„“",
        "—",
        "1,000.5",
        "x²",
    ),
    *("\u0300", "ﷺ", "㎏", "Ⅷ", "\U0001d504", "\ue000", "don't", "CO₂"),
]


def lines():
    """200 lines of parts that normalizers and subwords often get wrong."""
    rng = np.random.default_rng(0)
    made = ["", " ", ">>fr<< a heart", ">>fr<<", " >>fr<< a", ">>a<< >>b<< c", *PARTS]
    while len(made) < 200:
        chosen = rng.choice(len(PARTS), rng.integers(2, 7))
        made.append(rng.choice(["", " "]).join(PARTS[i] for i in chosen))
    return made


def vocabulary():
    """Trains source.spm and target.spm; returns the ids of their subwords."""
    pairs = cldr.names("en", "de", 0)["train"]
    tokens = {"</s>": None, "<unk>": None}
    for side, texts, rule in (
        ("source", pairs.source, "nmt_nfkc"),
        ("target", pairs.target, "identity"),
    ):
        with contextlib.chdir(FOLDER):  # the model contains its prefix
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_prefix=side,
                vocab_size=151,
                character_coverage=0.995,
                normalization_rule_name=rule,
                bos_id=-1,
                eos_id=0,
                unk_id=1,
                num_threads=1,
                minloglevel=2,
            )
        (FOLDER / f"{side}.model").rename(FOLDER / f"{side}.spm")
        found = (FOLDER / f"{side}.vocab").read_text().splitlines()
        tokens |= dict.fromkeys(line.split("\t")[0] for line in found)
        (FOLDER / f"{side}.vocab").unlink()
    ids = {token: i for i, token in enumerate([*tokens, ">>fr<<", "猫", "<pad>"])}
    text = json.dumps(ids, ensure_ascii=False, indent=0)
    (FOLDER / "vocab.json").write_text(text + "\n")
    return ids


def build(ids):
    """The model, every stored array random; ends are likely enough to come early."""
    torch.manual_seed(1)
    pad = ids["<pad>"]
    config = MarianConfig(
        **SHAPE,
        vocab_size=len(ids),
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=0,
    )
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if "embed_positions" in name:
                continue  # sinusoids
            one = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            # Much of the source, so that translations differ.
            scale = 0.5
            if "shared" in name or "encoder_attn." in name:
                scale = 0.2 if "shared" in name else 1.5
            x.copy_(one + scale * torch.randn_like(x))
        model.final_logits_bias[0, 0] = 1.0
    return model


def main():
    """Writes the folder of the model, and arrays."""
    FOLDER.mkdir(exist_ok=True)
    ids = vocabulary()
    model, pad = build(ids), ids["<pad>"]
    rng = np.random.default_rng(0)
    src = np.full((ROWS, LONGEST), pad)
    for row, length in enumerate(1 + np.arange(ROWS) % (LONGEST - 1)):
        src[row, : length + 1] = [*rng.integers(2, pad, length), 0]
    inputs = rng.integers(0, pad, (ROWS, 6))
    given = {
        "input_ids": torch.tensor(src),
        "attention_mask": torch.tensor(src != pad).int(),
    }
    never = {"suppress_tokens": [pad, ids["<unk>"]], "forced_eos_token_id": 0}
    with torch.no_grad():
        logits = model(**given, decoder_input_ids=torch.tensor(inputs)).logits
        found = model.generate(**given, **GENERATION, **never)
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    (FOLDER / "search.json").write_text(json.dumps(GENERATION, indent=1) + "\n")
    tokenizer = MarianTokenizer.from_pretrained(FOLDER)
    texts = lines()
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    decoded = [
        tokenizer.decode(row, skip_special_tokens=True) for row in found.tolist()
    ]
    stored = {"lines": texts, "ids": encoded, "decoded": decoded}
    (FOLDER / "lines.json").write_text(json.dumps(stored) + "\n")
    np.savez_compressed(
        FOLDER / "arrays.npz",
        src=src.astype(np.int32),
        where=src != pad,
        inputs=inputs.astype(np.int32),
        logits=logits.numpy(),
        generated=found.numpy().astype(np.int32),
    )
    print("tokens before ends:", np.bincount((found[:, 1:] == 0).int().argmax(1)))
    print("different:", len(np.unique(found.numpy(), axis=0)))


if __name__ == "__main__":
    main()
