"""Loss and gradients from hidden states and output matrix: ours, plain JAX, PyTorch.

python -m benchmarks.large_vocab [--positions 2048 --vocab 32000 --width 512]
python -m benchmarks.large_vocab --target gpu:h100     # compile for it in bfloat16
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.loss import SMOOTHING, plain, ready
from benchmarks.turns import import_torch, interleaved, table
from rdrop_jax import large_vocab_rdrop_loss, rdrop_loss
from rdrop_jax.cli import process, targets


def ours(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return large_vocab_rdrop_loss(
        hidden, kernel, labels, alpha=1.0, label_smoothing=SMOOTHING
    )[0]


def of_logits(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    """Compute `rdrop_loss`, in closed form, from all logits at once."""
    return rdrop_loss(hidden @ kernel, labels, alpha=1.0, label_smoothing=SMOOTHING)[0]


def formula(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    return plain(hidden @ kernel, labels)


def products(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute only the three required matrix products, in chunks."""
    rows = min(512, hidden.shape[0] * hidden.shape[1])
    chunks = hidden.reshape(-1, rows, hidden.shape[-1])

    def body(total: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = h @ kernel
        return total + h.T @ z, z @ kernel.T

    return jax.lax.scan(body, jnp.zeros_like(kernel), chunks)


def compile_for(target: targets.Target, positions: int, width: int, vocab: int) -> str:
    """Compile our loss and gradients in bfloat16 for one device; report its memory."""
    mesh = jax.sharding.Mesh(np.asarray(targets.devices(target))[:1], ("data",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.value_and_grad(ours, (0, 1))).lower(
            array((2, positions, width), jnp.bfloat16),
            array((width, vocab), jnp.bfloat16),
            array((positions,), jnp.int32),
        )
        memory = lowered.compile().memory_analysis()
    return (
        f"{target.name}: temporary {memory.temp_size_in_bytes / 2**20:.0f} MiB, "
        f"outputs {memory.output_size_in_bytes / 2**20:.0f} MiB"
    )


def main() -> None:
    """Print times, ratios and scratch memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", type=targets.parse, help=", ".join(targets.CHIPS))
    args = parser.parse_args()
    if args.target:
        targets.set_environment(args.target)
        jax.config.update("jax_platforms", "cpu")
        print(compile_for(args.target, args.positions, args.width, args.vocab))
        return
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, args.positions, args.width)).astype(np.float32)
    kernel = rng.normal(0, 0.05, (args.width, args.vocab)).astype(np.float32)
    labels = rng.integers(0, args.vocab, args.positions)
    arrays = [jnp.asarray(x) for x in (hidden, kernel, labels)]
    calls, scratch = {}, {}
    arms = {
        "ours": jax.value_and_grad(ours, (0, 1)),
        "rdrop_loss of the logits": jax.value_and_grad(of_logits, (0, 1)),
        "plain JAX": jax.value_and_grad(formula, (0, 1)),
        "matrix products alone": products,
    }
    for name, arm in arms.items():
        compiled = jax.jit(arm).lower(*arrays).compile()
        scratch[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        calls[name] = functools.partial(ready, compiled, *arrays)
    if import_torch():
        from benchmarks.torch_loss import make_linear_loss

        calls["PyTorch, official"] = make_linear_loss(hidden, kernel, labels, SMOOTHING)
    print(
        f"loss and gradients, 2 x {args.positions} positions, {args.vocab} words, "
        f"width {args.width}"
    )
    print(table(interleaved(calls, args.rounds), "ours"))
    for name, mib in scratch.items():
        print(f"scratch {name}: {mib:.0f} MiB, {mib / scratch['ours']:.1f} times ours")


if __name__ == "__main__":
    process.tune_allocator()
    main()
