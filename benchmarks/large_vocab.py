"""Loss and gradients from hidden states and output matrix: ours, plain JAX, PyTorch.

python -m benchmarks.large_vocab [--positions 2048 --vocab 32000 --width 512]
python -m benchmarks.large_vocab --consistency         # consistency and distillation
python -m benchmarks.large_vocab --target gpu:h100     # compile all for it in bfloat16
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.loss import SMOOTHING, plain, ready
from benchmarks.turns import import_torch, interleaved, table
from rdrop_jax import (
    LinearOutput,
    consistency,
    large_vocab_consistency,
    large_vocab_rdrop_loss,
    rdrop_loss,
)
from rdrop_jax.cli import process, program_counts, targets


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


def separate(
    first: jax.Array, second: jax.Array, kernel: jax.Array, other: jax.Array
) -> jax.Array:
    """Compute the divergence of two models, each with its hidden states and matrix."""
    p, q = LinearOutput(first, kernel), LinearOutput(second, other)
    return large_vocab_consistency(p, q).compute()


def shared(first: jax.Array, second: jax.Array, kernel: jax.Array) -> jax.Array:
    return separate(first, second, kernel, kernel)


def distilled(
    first: jax.Array, second: jax.Array, kernel: jax.Array, other: jax.Array
) -> jax.Array:
    """Distill the first model, which gets no gradient, into the second one."""
    p, q = LinearOutput(first, kernel), LinearOutput(second, other)
    return large_vocab_consistency(
        p, q, divergence="forward_kl", stop_gradient="first"
    ).compute()


def separate_logits(
    first: jax.Array, second: jax.Array, kernel: jax.Array, other: jax.Array
) -> jax.Array:
    return consistency(jnp.stack([first @ kernel, second @ other])).compute()


def distilled_logits(
    first: jax.Array, second: jax.Array, kernel: jax.Array, other: jax.Array
) -> jax.Array:
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(first @ kernel))
    log_q = jax.nn.log_softmax(second @ other)
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))


# Loss, arguments with a gradient, and arguments without one.
_SIDES = ("first", "second", "kernel", "other")
LOSSES: dict[str, tuple[Callable[..., jax.Array], tuple[str, ...], tuple[str, ...]]] = {
    "large_vocab_rdrop_loss": (ours, ("hidden", "kernel"), ("labels",)),
    "consistency, one matrix": (shared, _SIDES[:3], ()),
    "consistency, a matrix per side": (separate, _SIDES, ()),
    "distillation": (distilled, ("second", "other"), ("first", "kernel")),
}
OF_LOGITS = {
    "consistency of the logits": (separate_logits, _SIDES, ()),
    "distillation of the logits": (distilled_logits, *LOSSES["distillation"][1:]),
}


def shapes_of(positions: int, width: int, vocab: int) -> dict[str, tuple[int, ...]]:
    rows, matrix = (positions, width), (width, vocab)
    return {
        "hidden": (2, *rows),
        "first": rows,
        "second": rows,
        "kernel": matrix,
        "other": matrix,
        "labels": (positions,),
    }


def gradients(name: str, arrays: dict[str, Any]) -> tuple[Any, tuple[Any, Any]]:
    """Return a jitted loss with gradients, and its arguments."""
    loss, trained, fixed = (LOSSES | OF_LOGITS)[name]
    call = jax.value_and_grad(lambda x, y: loss(**x, **y))
    return jax.jit(call), (
        {k: arrays[k] for k in trained},
        {k: arrays[k] for k in fixed},
    )


def compile_for(target: targets.Target, name: str, shapes: dict[str, Any]) -> str:
    """Compile a loss and its gradients in bfloat16 for one device; report its costs."""
    mesh = jax.sharding.Mesh(np.asarray(targets.devices(target))[:1], ("data",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    arrays = {
        key: jax.ShapeDtypeStruct(
            shape, jnp.int32 if key == "labels" else jnp.bfloat16, sharding=placed
        )
        for key, shape in shapes.items()
    }
    call, arguments = gradients(name, arrays)
    with jax.set_mesh(mesh):
        traced = call.trace(*arguments)
        compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    product = 2 * np.prod(shapes["first"]) * shapes["kernel"][1]
    products = program_counts.count_products(traced.jaxpr.jaxpr) / product
    flops, _ = program_counts.compiler_counts(compiled)
    counted = "" if flops is None else f", operations {flops / product:.3f} products"
    return (
        f"{target.name}, {name}: "
        f"temporary {memory.temp_size_in_bytes / 2**20:.0f} MiB, "
        f"inputs {memory.argument_size_in_bytes / 2**20:.0f} MiB, "
        f"outputs {memory.output_size_in_bytes / 2**20:.0f} MiB, "
        f"{products:.3f} matrix products{counted}"
    )


def time_consistency(positions: int, width: int, vocab: int, rounds: int) -> None:
    """Print times, ratios and scratch memory of consistency and distillation."""
    rng, calls, scratch = np.random.default_rng(0), {}, {}
    arrays = {
        key: jnp.asarray(
            rng.normal(0, 0.05 if key in ("kernel", "other") else 1, shape), jnp.float32
        )
        for key, shape in shapes_of(positions, width, vocab).items()
    } | {"labels": jnp.asarray(rng.integers(0, vocab, positions))}
    for name in LOSSES | OF_LOGITS:
        call, arguments = gradients(name, arrays)
        compiled = call.lower(*arguments).compile()
        scratch[name] = compiled.memory_analysis().temp_size_in_bytes / 2**20
        calls[name] = functools.partial(ready, compiled, *arguments)
    print(f"{positions} positions, {vocab} tokens, width {width}, loss and gradients")
    print(table(interleaved(calls, rounds), "large_vocab_rdrop_loss"))
    for name, mib in scratch.items():
        print(f"scratch {name}: {mib:.0f} MiB")


def main() -> None:
    """Print times, ratios and scratch memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", type=targets.parse, help=", ".join(targets.CHIPS))
    parser.add_argument("--consistency", action="store_true")
    args = parser.parse_args()
    sizes = (args.positions, args.width, args.vocab)
    if args.target:
        targets.set_environment(args.target)
        jax.config.update("jax_platforms", "cpu")
        for name in LOSSES:
            print(compile_for(args.target, name, shapes_of(*sizes)), flush=True)
        return
    if args.consistency:
        time_consistency(*sizes, args.rounds)
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
