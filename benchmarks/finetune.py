"""A fine-tuning step of BERT: ours, and the published code on transformers and PyTorch.

python -m benchmarks.finetune [--size MiniLM-L6 --batch 16 --length 64]

Also prints the share of padding in batches of scipy's docstrings, by batching method.
"""

import argparse
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.turns import import_torch, interleaved, ratio, repeated, table
from rdrop_jax import init_state, linen_forward, make_train_step, rdrop_loss
from rdrop_jax.cli import process
from rdrop_jax.data import docstrings, subwords
from rdrop_jax.models.encoder import SIZES, Classifier, Encoder
from rdrop_jax.tasks.text_classification import buckets
from rdrop_jax.tasks.text_classification.task import encoder_inputs

CLASSES, VOCAB = 2, 30522
PUBLISHED_LENGTH = 128  # to which the published code pads every batch


def make_batch(rows: int, time: int) -> dict[str, np.ndarray]:
    """Make pairs that fill 75 % to 100 % of a shape."""
    rng = np.random.default_rng(0)
    length = rng.integers(3 * time // 4, time + 1, rows)
    there = np.arange(time) < length[:, None]
    return {
        "tokens": np.where(there, rng.integers(999, VOCAB, (rows, time)), 0),
        "types": ((np.arange(time) >= time // 2) & there).astype(np.int64),
        "length": length,
        "label": rng.integers(0, CLASSES, rows),
    }


def make_step(
    size: str, batch: dict[str, np.ndarray], alpha: float
) -> Callable[[], None]:
    """Make our step: clipping, AdamW without decay of biases and norms."""
    model = Classifier(Encoder("bert", SIZES[size], vocab_size=VOCAB), CLASSES)
    forward = linen_forward(
        model, encoder_inputs, train={"train": True}, evaluate={"train": False}
    )

    def loss(logits, batch, **objective):
        return rdrop_loss(logits, batch["label"], **objective)

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(1e-5, 0.9, 0.98, 1e-6, weight_decay=0.01, mask=matrices),
    )
    step = jax.jit(make_train_step(forward, tx, loss, alpha=alpha), donate_argnums=0)
    data = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}

    @jax.jit
    def start():
        key = jax.random.key(0)
        inputs = encoder_inputs(data)
        params = model.init(key, *inputs, train=False)["params"]
        return init_state(params, tx, key)

    return repeated(step, start(), data)


def torch_steps(
    size: str, batch: dict[str, np.ndarray]
) -> dict[str, Callable[[], float]]:
    """Make steps of the published code, if PyTorch and transformers are installed."""
    if not import_torch():
        return {}
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: left out")
        return {}
    from benchmarks import torch_bert

    layers, width, heads, mlp_width = SIZES[size]

    def step(batch: dict[str, np.ndarray]) -> Callable[[], float]:
        return torch_bert.make_step(
            batch,
            CLASSES,
            1e-5,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=mlp_width,
            vocab_size=VOCAB,
        )

    more = [(0, 0), (0, max(0, PUBLISHED_LENGTH - batch["tokens"].shape[1]))]
    padded = batch | {k: np.pad(batch[k], more) for k in ("tokens", "types")}
    name = "transformers and PyTorch, published R-Drop"
    return {name: step(batch), f"{name}, padded to {PUBLISHED_LENGTH}": step(padded)}


def paddings(batch_size: int, max_length: int) -> dict[str, float]:
    """Compute the shares of padding in batches of docstrings."""
    rows = docstrings.summaries("scipy", shortest=20, rarest=50)
    texts = [row.text for row in rows]
    tokenizer = subwords.train_wordpiece(texts, 4000)
    lengths = subwords.encode(tokenizer, texts, None, max_length).lengths
    order = np.random.default_rng(0).permutation(lengths)
    whole = order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)
    shapes = buckets.choose_shapes(lengths, 8)
    data = buckets.BucketBatches(
        lengths, lambda rows, time: {}, batch_size=batch_size, shapes=shapes, seed=0
    )
    return {
        "all padded to the maximum length, as published": 1 - whole.mean() / max_length,
        "random batches, each padded to its longest row": 1
        - whole.sum() / (whole.max(axis=1).sum() * batch_size),
        f"buckets, at most {len(shapes)} shapes": data.padding(len(whole)),
    }


def main() -> None:
    """Print times, ratios and shares of padding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="MiniLM-L6")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    batch = make_batch(args.batch, args.length)
    arms = {
        "R-Drop": make_step(args.size, batch, 1.0),
        "plain": make_step(args.size, batch, 0.0),
        **torch_steps(args.size, batch),
    }
    print(
        f"fine-tuning step, BERT of {SIZES[args.size]}, {args.batch} x {args.length} "
        "tokens",
        flush=True,
    )
    seconds = interleaved(arms, args.rounds)
    print(table(seconds, "R-Drop"))
    print(f"R-Drop over plain: {ratio(seconds['R-Drop'], seconds['plain'])}")
    print("padding, docstrings of scipy up to 128 tokens, batches of 32:")
    for name, share in paddings(32, 128).items():
        print(f"  {name}: {share:.3f}")


if __name__ == "__main__":
    process.tune_allocator()
    main()
