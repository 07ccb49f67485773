"""Where a train step's time goes: the parts of one ViT layer, forward and backward.

python -m benchmarks.parts
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import interleaved
from rdrop_jax import dropout
from rdrop_jax.cli import process
from rdrop_jax.models.layers import gelu

BATCH, TIME, HEADS, WIDTH, MLP_WIDTH = 64, 64, 3, 192, 768


def dense(x, kernel, bias):
    return x @ kernel + bias[None]


def attention(q, k, v):
    q, k, v = (x.reshape(BATCH, TIME, HEADS, -1) for x in (q, k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / 8.0
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)


def norm(x, scale, bias):
    params = {"scale": scale, "bias": bias}
    return nn.LayerNorm(1e-6).apply({"params": params}, x)


def both_ways(f: Callable[..., jax.Array], *shapes: tuple[int, ...]):
    """Make a call of f and of its gradient in all arguments."""
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(0.05 * rng.normal(size=s), jnp.float32) for s in shapes]
    out = jnp.ones(jax.eval_shape(f, *arrays).shape)

    @jax.jit
    def run(out, *arrays):
        y, pull = jax.vjp(f, *arrays)
        return y, pull(out)

    return lambda: jax.block_until_ready(run(out, *arrays))


def main() -> None:
    """Print milliseconds per part, and its number per layer and pass."""
    rows = (BATCH * TIME, WIDTH)
    wide = (BATCH * TIME, MLP_WIDTH)
    key = jax.random.key(0)
    drop = functools.partial(dropout, key, rate=0.1)
    parts = {
        "Dense 192 to 768": (1, dense, rows, (WIDTH, MLP_WIDTH), (MLP_WIDTH,)),
        "Dense 768 to 192": (1, dense, wide, (MLP_WIDTH, WIDTH), (WIDTH,)),
        "Dense 192 to 192": (4, dense, rows, (WIDTH, WIDTH), (WIDTH,)),
        "attention": (1, attention, rows, rows, rows),
        "GELU and dropout": (1, lambda x: drop(x=gelu(x)), wide),
        "dropout": (1, lambda x: drop(x=x), rows),
        "LayerNorm": (2, norm, rows, (WIDTH,), (WIDTH,)),
    }
    arms = {name: both_ways(*part[1:]) for name, part in parts.items()}
    total = 0.0
    print("| part | ms, minimum | times per layer and pass |\n| --- | --- | --- |")
    for name, seconds in interleaved(arms, 15).items():
        ms, count = min(seconds) * 1e3, parts[name][0]
        total += ms * count
        print(f"| {name} | {ms:.1f} | {count} |")
    print(f"a layer and pass: {total:.0f} ms; 6 layers, 2 passes: {12 * total:.0f} ms")


if __name__ == "__main__":
    process.tune_allocator()
    main()
