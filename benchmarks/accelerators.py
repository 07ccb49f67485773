"""Bytes, memory and operations of a ViT-B/16 step, ours against a naive R-Drop.

python -m benchmarks.accelerators --target tpu:v5e:2x4 --layers 2 --out COSTS.jsonl

Compiles for a TPU or GPU that need not be there: see docs/compile.md. The naive step
makes one call of flax's own layers on [x; x], with optax's losses. Rows that --out
already has are not compiled again.
"""

import argparse
import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rdrop_jax import flags
from rdrop_jax.cli import compile as compile_lib
from rdrop_jax.cli import targets
from rdrop_jax.errors import InputError

ROWS = 64  # images per device
CLASSES, IMAGE, PATCH, WIDTH, HEADS, MLP_WIDTH = 100, 224, 16, 768, 12, 3072


def naive_model(layers: int) -> Any:
    """Build a ViT from flax's own layers, in bfloat16."""
    import flax.linen as nn
    import jax.numpy as jnp

    dtype = jnp.bfloat16

    class NaiveViT(nn.Module):
        @nn.compact
        def __call__(self, images: Any) -> Any:
            def drop(x: Any) -> Any:
                return nn.Dropout(0.1)(x, deterministic=False)

            patch = (PATCH, PATCH)
            x = nn.Conv(WIDTH, patch, patch, "VALID", dtype=dtype)(images)
            x = x.reshape(len(x), -1, WIDTH)
            token = self.param("token", nn.initializers.zeros, (1, 1, WIDTH))
            token = jnp.tile(token.astype(dtype), (len(x), 1, 1))
            x = jnp.concatenate([token, x], axis=1)
            normal = nn.initializers.normal(0.02)
            places = self.param("positions", normal, (1, *x.shape[1:]))
            x = drop(x + places.astype(dtype))
            for _ in range(layers):
                h = nn.LayerNorm(dtype=dtype)(x)
                x += nn.MultiHeadDotProductAttention(HEADS, dtype=dtype)(h, h)
                h = nn.Dense(MLP_WIDTH, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x))
                x += drop(nn.Dense(WIDTH, dtype=dtype)(drop(nn.gelu(h))))
            x = nn.LayerNorm(dtype=dtype)(x)[:, 0]
            return nn.Dense(CLASSES, dtype=dtype)(x).astype(jnp.float32)

    return NaiveViT()


def naive_loss(logits: Any, labels: Any) -> Any:
    """Compute R-Drop at alpha 1 from the logits of [x; x], by optax's losses."""
    import jax
    import jax.numpy as jnp
    import optax

    pair = jnp.split(logits, 2)
    ce = sum(optax.softmax_cross_entropy_with_integer_labels(z, labels) for z in pair)
    p, q = (jax.nn.log_softmax(z) for z in pair)
    kl = optax.losses.kl_divergence_with_log_targets
    return jnp.mean(ce + (kl(p, q) + kl(q, p)) / 2)


def compile_naive(target: targets.Target, layers: int) -> Any:
    """Compile the naive step with the optimizer of the preset `cifar100`."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(targets.devices(target)), ("data",))
    model = naive_model(layers)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(8e-3, momentum=0.9))

    def start() -> Any:
        images = jnp.zeros((1, IMAGE, IMAGE, 3))
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        params = model.init(keys, images)
        return params, tx.init(params), jax.random.key(0)

    def step(state: Any, images: Any, labels: Any) -> Any:
        params, moments, key = state
        key, new = jax.random.split(key)

        def loss(params: Any) -> Any:
            twice = jnp.concatenate([images, images])
            return naive_loss(model.apply(params, twice, rngs={"dropout": key}), labels)

        total, slope = jax.value_and_grad(loss)(params)
        updates, moments = tx.update(slope, moments, params)
        return (optax.apply_updates(params, updates), moments, new), total

    def placed(x: Any, *axes: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(placed, jax.eval_shape(start))
    rows = ROWS * target.count
    images = jax.ShapeDtypeStruct((rows, IMAGE, IMAGE, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    lowered = jax.jit(step, donate_argnums=0).lower(
        state, placed(images, "data"), placed(labels, "data")
    )
    return lowered.compile()


def compile_ours(target: targets.Target, layers: int, field: str = "") -> Any:
    """Compile the step of the preset `cifar100`, with one more field set."""
    overrides = {
        "init_from": "",
        "batch_size": str(ROWS * target.count),
        "model.dtype": "bfloat16",
        "model.layers": str(layers),
    }
    overrides |= dict([field.split("=")]) if field else {}
    config = flags.load("configs/vit.py:cifar100", overrides)
    return compile_lib.compile_step(config, target)[0]


CASES: dict[str, Callable[[targets.Target, int], Any]] = {
    "naive": compile_naive,
    "ours": compile_ours,
    "plain": partial(compile_ours, field="rdrop.alpha=0"),
    "remat": partial(compile_ours, field="model.remat=true"),
}


def main() -> None:
    """Compile the cases that are not in the file yet, and print all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=targets.parse, required=True)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    try:
        targets.set_environment(args.target)
    except InputError as error:
        print(f"skipped: {error}")
        return
    importlib.import_module("jax")  # after the environment is set
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = {tuple(row[:3]): row for row in map(json.loads, lines)}
    for case in args.cases:
        name = (args.target.name, args.layers, case)
        if name not in rows:
            compiled = CASES[case](args.target, args.layers)
            costs = compiled.cost_analysis() or {}
            memory = compiled.memory_analysis().temp_size_in_bytes
            found = (costs.get("bytes accessed"), memory, costs.get("flops"))
            rows[name] = [*name, *found]
            with args.out.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
        print("target, layers, case, bytes moved, temporary bytes, operations")
        print(*rows[name], sep=", ", flush=True)


if __name__ == "__main__":
    main()
