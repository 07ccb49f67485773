"""A train step of a ViT: R-Drop, plain, and the official PyTorch formulation.

python -m benchmarks.step [--layers 6 --width 192 --batch 64]
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.turns import import_torch, interleaved, ratio, repeated, table
from rdrop_jax import init_state, linen_forward, make_train_step, rdrop_loss
from rdrop_jax.cli import process
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import ViT

CLASSES, PATCH, PIXELS = 100, 4, (28, 36)  # 63 patches and the class token
TOKENS = 1 + PIXELS[0] // PATCH * PIXELS[1] // PATCH
DROPOUT = 0.1


def make_step(size: Size, batch: int, alpha: float, masks: str) -> Callable[[], None]:
    """Make our step."""
    model = ViT(size, CLASSES, PATCH, dropout=DROPOUT, masks=masks)
    forward = linen_forward(
        model, "image", train={"train": True}, evaluate={"train": False}
    )

    def loss(logits, batch, **objective):
        return rdrop_loss(logits, batch["label"], **objective)

    tx = optax.adamw(1e-3)
    step = jax.jit(make_train_step(forward, tx, loss, alpha=alpha), donate_argnums=0)
    rng = np.random.default_rng(0)
    data = {
        "image": jnp.asarray(rng.normal(size=(batch, *PIXELS, 3)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, CLASSES, batch)),
    }

    @jax.jit
    def start():
        key = jax.random.key(0)
        params = model.init(key, data["image"], train=False)["params"]
        return init_state(params, tx, key)

    return repeated(step, start(), data)


def torch_steps(size: Size, batch: int, alpha: float) -> dict[str, Callable[[], float]]:
    """Make steps of the official formulation, if PyTorch is installed."""
    torch = import_torch()
    if not torch:
        return {}
    from benchmarks import torch_vit

    images, labels = torch.randn(batch, *PIXELS, 3), torch.randint(CLASSES, (batch,))

    def step(compiled: bool) -> Callable[[], float]:
        model = torch_vit.ViT(
            *size, classes=CLASSES, patch=PATCH, patches=TOKENS - 1, dropout=DROPOUT
        )
        return torch_vit.make_step(
            model, images, labels, alpha=alpha, compiled=compiled
        )

    return {
        "PyTorch R-Drop, official": step(compiled=False),
        "PyTorch R-Drop, torch.compile": step(compiled=True),
    }


def step_flops(size: Size, batch: int, passes: int) -> float:
    """Count FLOPs of all matrix products, forward and twice that backward."""
    block = 4 * size.width**2 + 2 * size.width * size.mlp_width
    attention = 2 * TOKENS * size.width
    per_token = size.layers * (block + attention) + PATCH**2 * 3 * size.width
    return 2 * 3 * passes * batch * TOKENS * per_token


def peak_flops(side: int = 2048) -> float:
    """Measure FLOP/s of one large matrix product."""
    a = jnp.ones((side, side))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(product(a, a))
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times)


def main() -> None:
    """Print times, ratios and the share of the matrix peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    size = Size(args.layers, args.width, args.width // 64, 4 * args.width)
    arms = {
        "R-Drop": make_step(size, args.batch, 1.0, "hash"),
        "plain": make_step(size, args.batch, 0.0, "hash"),
        "R-Drop, jax.random masks": make_step(size, args.batch, 1.0, "bernoulli"),
        **torch_steps(size, args.batch, 1.0),
    }
    print(f"train step, ViT of {size}, {TOKENS} tokens, batch {args.batch}", flush=True)
    seconds = interleaved(arms, args.rounds)
    print(table(seconds, "R-Drop"))
    print(f"R-Drop over plain: {ratio(seconds['R-Drop'], seconds['plain'])}")
    peak = peak_flops()
    share = step_flops(size, args.batch, 2) / min(seconds["R-Drop"]) / peak
    print(f"{share:.0%} of {peak / 1e9:.0f} GFLOP/s, {os.cpu_count()} cores")


if __name__ == "__main__":
    process.tune_allocator()
    main()
