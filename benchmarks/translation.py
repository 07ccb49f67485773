"""A train step of a translator: R-Drop, plain, and the official PyTorch formulation.

python -m benchmarks.translation [--layers 2 --width 192 --vocab 4000 --rows 64]
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.turns import import_torch, interleaved, ratio, repeated, table
from rdrop_jax import init_state, make_train_step
from rdrop_jax.cli import process
from rdrop_jax.config import base_config
from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size
from rdrop_jax.tasks.seq2seq.task import make_forward
from rdrop_jax.tasks.vocabulary_loss import make_loss

DROPOUT, SMOOTHING, ALPHA = 0.3, 0.1, 5.0


def make_batch(rows: int, time: int, vocab: int) -> dict[str, np.ndarray]:
    """Make sentences that fill 80 % to 100 % of a shape."""
    rng = np.random.default_rng(0)
    there = np.arange(time) < rng.integers(4 * time // 5, time + 1, (2, rows, 1))
    src, labels = np.where(there, rng.integers(4, vocab, (2, rows, time)), 0)
    inputs = np.pad(labels, ((0, 0), (1, 0)))[:, :time]
    named = {"src": src, "inputs": inputs, "labels": labels}
    ids = {k: x.astype(np.int32) for k, x in named.items()}
    return ids | {"src_where": there[0], "where": there[1]}


def make_step(
    size: Size, vocab: int, batch: dict[str, np.ndarray], alpha: float
) -> Callable[[], None]:
    """Make our step."""
    model = Seq2Seq(vocab, size, Rates(DROPOUT))
    config = base_config()
    config.rdrop.label_smoothing, config.rdrop.alpha = SMOOTHING, alpha
    loss, out_axes = make_loss(config, vocab), LinearOutput(0, None, None)
    tx = optax.adamw(1e-3, 0.9, 0.98)
    train_step = make_train_step(
        make_forward(model), tx, loss, alpha=alpha, out_axes=out_axes
    )
    step = jax.jit(train_step, donate_argnums=0)
    data = {k: jnp.asarray(x) for k, x in batch.items()}

    @jax.jit
    def start():
        key = jax.random.key(0)
        ids = (data["src"], data["src_where"], data["inputs"])
        params = model.init(key, *ids, train=False)["params"]
        return init_state(params, tx, key)

    return repeated(step, start(), data)


def torch_step(
    size: Size, vocab: int, batch: dict[str, np.ndarray]
) -> dict[str, Callable[[], float]]:
    """Make a step of the official formulation, if PyTorch is installed."""
    if not import_torch():
        return {}
    from benchmarks import torch_seq2seq

    model = torch_seq2seq.Transformer(
        *size[1:], vocab=vocab, positions=batch["src"].shape[1], dropout=DROPOUT
    )
    step = torch_seq2seq.make_step(model, batch, alpha=ALPHA, smoothing=SMOOTHING)
    return {"PyTorch R-Drop, official": step}


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--vocab", type=int, default=4000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    size = Size(args.layers, args.layers, args.width, 4, 2 * args.width)
    batch = make_batch(args.rows, args.length, args.vocab)
    arms = {
        "R-Drop": make_step(size, args.vocab, batch, ALPHA),
        "plain": make_step(size, args.vocab, batch, 0.0),
        **torch_step(size, args.vocab, batch),
    }
    print(
        f"train step, {size}, {args.vocab} pieces, {args.rows} x {args.length} tokens",
        flush=True,
    )
    seconds = interleaved(arms, args.rounds)
    print(table(seconds, "R-Drop"))
    print(f"R-Drop over plain: {ratio(seconds['R-Drop'], seconds['plain'])}")


if __name__ == "__main__":
    process.tune_allocator()
    main()
