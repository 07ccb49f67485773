"""Loss and gradient of given logits: ours, plain JAX, the official PyTorch formula.

python -m benchmarks.loss [--positions 4096 --classes 10000]
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.turns import import_torch, interleaved, table
from rdrop_jax import rdrop_loss
from rdrop_jax.cli import process

SMOOTHING = 0.1


def ours(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return rdrop_loss(logits, labels, alpha=1.0, label_smoothing=SMOOTHING)[0]


def plain(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the official formula in jnp: log-softmax, softmax, two one-way KLs."""
    log_p, p = jax.nn.log_softmax(logits), jax.nn.softmax(logits)
    kl = jnp.sum(p[0] * (log_p[0] - log_p[1]), -1)
    kl += jnp.sum(p[1] * (log_p[1] - log_p[0]), -1)
    return jnp.mean(_cross_entropy(log_p, labels) + kl / 2)


def lean(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute the cheapest formula for autodiff: one softmax, both KLs in one sum."""
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    s = jnp.sum((p[0] - p[1]) * (log_p[0] - log_p[1]), -1) / 2
    return jnp.mean(_cross_entropy(log_p, labels) + s)


def _cross_entropy(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    nll = -jnp.take_along_axis(log_p, labels[None, :, None], -1)[..., 0]
    return jnp.sum((1 - SMOOTHING) * nll - SMOOTHING * jnp.mean(log_p, -1), 0)


def main() -> None:
    """Print times, ratios, scratch memory and the largest difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, args.positions, args.classes)).astype(np.float32)
    labels = rng.integers(0, args.classes, args.positions)
    z, y = jnp.asarray(logits), jnp.asarray(labels)
    calls, scratch, results = {}, {}, {}
    for name, loss in {"ours": ours, "plain JAX": plain, "lean JAX": lean}.items():
        compiled = jax.jit(jax.value_and_grad(loss)).lower(z, y).compile()
        scratch[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        results[name] = compiled(z, y)
        calls[name] = functools.partial(ready, compiled, z, y)
    if import_torch():
        from benchmarks.torch_loss import make_loss

        calls["PyTorch, official"] = make_loss(logits, labels, SMOOTHING, False)
        calls["PyTorch, torch.compile"] = make_loss(logits, labels, SMOOTHING, True)
    print(f"loss and gradient, logits 2 x {args.positions} x {args.classes}")
    print(table(interleaved(calls, args.rounds), "ours"))
    for name, mib in scratch.items():
        print(f"scratch {name}: {mib:.1f} MiB, {mib / scratch['ours']:.0f} times ours")
    ours_grad, plain_grad = (results[name][1] for name in ("ours", "plain JAX"))
    gap = jnp.max(jnp.abs(ours_grad - plain_grad)) / jnp.max(jnp.abs(plain_grad))
    print(f"largest difference of the gradients: {float(gap):.1e} of the largest")


def ready(call, *arguments):
    return jax.block_until_ready(call(*arguments))


if __name__ == "__main__":
    process.tune_allocator()
    main()
