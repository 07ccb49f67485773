"""Memory of a LoRA step with R-Drop for a decoder of 1.2 B parameters, on a GPU.

python -m benchmarks.lora_memory --target gpu:h100     # in the environment of Tunix

Compiles the step of examples/integrations/tunix_lora.py by the compiler of the target:
16 layers, width 2,048, 128,256 tokens, bfloat16, layers recomputed in the backward
pass, two sequences of 2,048 tokens. Runs nothing.
"""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from tunix.models.qwen3.model import ModelConfig, RematConfig

from rdrop_jax import rdrop_loss
from rdrop_jax.cli import targets

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "integrations"))
import tunix_lora

CONFIG = ModelConfig(
    num_layers=16,
    vocab_size=128_256,
    embed_dim=2048,
    hidden_dim=8192,
    num_heads=32,
    head_dim=64,
    num_kv_heads=8,
    rope_theta=500_000,
    norm_eps=1e-5,
    use_tied_embedding=True,
    remat_config=RematConfig.DECODER,
    dtype=jnp.bfloat16,
    param_dtype=jnp.bfloat16,
)


def logits_loss(model, inputs, mask, alpha):
    """Compute the loss from the logits of both passes."""
    logits = jnp.stack([model(*inputs)[0][:, :-1] for _ in range(2)])
    return rdrop_loss(logits, inputs[0][:, 1:], alpha=alpha, where=mask[:, 1:])


def plain_loss(model, inputs, mask, alpha):
    """Compute the cross entropy of one pass, without R-Drop."""
    logits = model(*inputs)[0][None, :, :-1]
    return rdrop_loss(logits, inputs[0][:, 1:], alpha=0.0, where=mask[:, 1:])


def hidden_loss(model, inputs, mask, alpha):
    """Compute the loss from hidden states, as the example does."""
    return tunix_lora.loss_fn(model, inputs, mask, alpha)


ARMS = {"plain": plain_loss, "logits": logits_loss, "large_vocab": hidden_loss}


def make(layers: int) -> nnx.Module:
    """Make the model with LoRA, only shapes within `nnx.eval_shape`."""
    config = dataclasses.replace(CONFIG, num_layers=layers)
    base = tunix_lora.Qwen3(config, rngs=nnx.Rngs(0))
    tokens = jnp.ones((1, 8), jnp.int32)
    batch = tunix_lora.peft_trainer.TrainingInput(tokens, tokens > 0)
    return tunix_lora.add_lora(base, batch, dropout=0.1)


def compile_for(target: targets.Target, arm: str, layers: int) -> str:
    """Compile a step with one loss for one device; report its memory."""
    mesh = Mesh(np.asarray(targets.devices(target))[:1], ("data",))
    everywhere = NamedSharding(mesh, jax.P())

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree
        )

    graph, lora, rest = nnx.split(
        nnx.eval_shape(functools.partial(make, layers)), nnx.LoRAParam, ...
    )
    lora, rest = nnx.to_pure_dict(lora), nnx.to_pure_dict(rest)
    tx = optax.adam(1e-4)
    batch = tunix_lora.peft_trainer.TrainingInput(
        jax.ShapeDtypeStruct((2, 2048), jnp.int32, sharding=everywhere),
        jax.ShapeDtypeStruct((2, 2048), bool, sharding=everywhere),
    )

    def step(lora, optimizer, rest, batch):
        def loss(lora):
            model = nnx.merge(graph, lora, rest)
            return ARMS[arm](model, **tunix_lora.model_input(batch), alpha=1.0)

        grads, _ = jax.grad(loss, has_aux=True)(lora)
        updates, optimizer = tx.update(grads, optimizer, lora)
        return optax.apply_updates(lora, updates), optimizer

    arguments = placed((lora, jax.eval_shape(tx.init, lora), rest))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments, batch)
        memory = lowered.compile().memory_analysis()
    return (
        f"{target.name}, {arm}: state {memory.argument_size_in_bytes / 2**20:.0f} MiB, "
        f"temporary {memory.temp_size_in_bytes / 2**20:.0f} MiB"
    )


def main() -> None:
    """Print the memory of each loss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=targets.parse, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--layers", type=int, default=CONFIG.num_layers)
    args = parser.parse_args()
    targets.set_environment(args.target)
    jax.config.update("jax_platforms", "cpu")
    for arm in args.arms.split(","):
        print(compile_for(args.target, arm, args.layers), flush=True)


if __name__ == "__main__":
    main()
