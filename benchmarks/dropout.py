"""Dropout alone: ours, flax's, PyTorch's. python -m benchmarks.dropout"""

import argparse
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.turns import import_torch, interleaved, table
from rdrop_jax import dropout
from rdrop_jax.cli import process

REPEATS = 10  # shorter calls mostly measure the wake-up of threads


def main() -> None:
    """Print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    key = jax.random.key(0)
    module = nn.Dropout(0.1, deterministic=False)
    arms = {
        "ours": lambda x: dropout(key, x, 0.1),
        "flax": lambda x: module.apply({}, x, rngs={"dropout": key}),
        "a copy": lambda x: x * 1.1,
    }
    for shape in ((8192, 768), (128, 3, 64, 64)):
        x = jnp.ones(shape)
        calls = {
            name: functools.partial(_ready, jax.jit(arm), x)
            for name, arm in arms.items()
        }
        if torch := import_torch():
            y = torch.ones(shape)
            calls["PyTorch"] = functools.partial(
                _repeat, torch.nn.functional.dropout, y, 0.1
            )
        print(f"\nforward, {shape} float32, rate 0.1, {REPEATS} calls")
        print(table(interleaved(calls, args.rounds), "ours"))


def _ready(call, x):
    for _ in range(REPEATS):
        jax.block_until_ready(call(x))


def _repeat(call, *arguments):
    for _ in range(REPEATS):
        call(*arguments)


if __name__ == "__main__":
    process.tune_allocator()
    main()
