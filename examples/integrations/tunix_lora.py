"""R-Drop in Tunix: fine-tune LoRA parameters of a decoder, through the loss hook.

Run: pip install google-tunix scikit-learn; python examples/integrations/tunix_lora.py

A prompt is an image of a digit as 16 brightness tokens, a completion its class and an
end token. The Qwen3 is small and random; AutoModel.from_pretrained loads real models.
Base models ship without dropout: the noise is dropout on LoRA's input.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from sklearn.datasets import load_digits
from tunix.models.qwen3.model import ModelConfig, Qwen3
from tunix.sft import peft_trainer, utils

from rdrop_jax import check_stochastic, large_vocab_rdrop_loss, nnx_forward

# Layers, tokens, three widths and heads, theta and epsilon.
CONFIG = ModelConfig(2, 64, 64, 128, 4, 16, 2, 10_000, 1e-6, use_tied_embedding=True)


def model_input(batch):
    tokens = batch.input_tokens
    positions = utils.build_positions_from_mask(tokens > 0)
    inputs = (tokens, positions, None, utils.make_causal_attn_mask(tokens > 0))
    return {"inputs": inputs, "mask": batch.input_mask}


def add_lora(base, batch, dropout):
    lora = {"module_path": ".*_proj", "rank": 16, "alpha": 32.0, "dropout": dropout}
    provider, inputs = qwix.LoraProvider(**lora), model_input(batch)["inputs"]
    model = qwix.apply_lora_to_model(base, provider, *inputs, rngs=nnx.Rngs(1))
    model.set_attributes(qwix_rngs=nnx.Rngs(dropout=2))  # qwix removes its own
    return model


def loss_fn(model, inputs, mask, alpha):
    def hidden():  # XLA removes the unused logits
        model(*inputs, output_hidden_states=True)
        return nnx.pop(model, nnx.Intermediate)["all_hidden_states"][0][:, :-1]

    states, kernel = jnp.stack([hidden(), hidden()]), model.embedder.input_embedding
    options = {"tied": True, "alpha": alpha, "where": mask[:, 1:]}
    labels = inputs[0][:, 1:]
    loss, metrics = large_vocab_rdrop_loss(states, kernel[...], labels, **options)
    return loss, metrics["kl"].compute()


class Trainer(peft_trainer.PeftTrainer):  # logs the divergence next to the loss
    def _post_process_train_step(self, aux):
        self._buffered_train_metrics.additional_metrics["kl"] = ([aux], np.mean)


def random_weights(x, sharding):  # as large as trained ones; Tunix starts some at 0
    w = np.random.default_rng(x.size).normal(0, 0.125, x.shape).astype(x.dtype)
    return jax.device_put(x if x.ndim == 1 else w, sharding)


def main(alpha=1.0, dropout=0.1, steps=300, devices=1):
    """Train; return the share of exact completions and the mean KL of 50 steps."""
    images, labels = load_digits(return_X_y=True)
    levels = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).round().reshape(-1, 16)
    tokens = np.c_[1 + levels, 18 + labels, np.full(1797, 28)].astype(np.int32)
    masks = np.broadcast_to(np.arange(18) >= 16, tokens.shape)  # completions alone

    def batch(rows):
        return peft_trainer.TrainingInput(tokens[rows], masks[rows])

    with jax.sharding.Mesh(np.c_[jax.devices()[:devices]], ("fsdp", "tp")) as mesh:
        base = Qwen3(CONFIG, rngs=nnx.Rngs(0))
        state = nnx.state(base, nnx.Param)
        shardings = nnx.get_named_sharding(state, mesh)
        nnx.update(base, jax.tree.map(random_weights, state, shardings))
        first = batch(np.arange(8))
        model = add_lora(base, first, dropout)
        forward = nnx_forward(model, lambda b: model_input(b)["inputs"])
        check_stochastic(*forward, first, jax.random.key(0))
        config = peft_trainer.TrainingConfig(eval_every_n_steps=steps, max_steps=steps)
        trainer = Trainer(model, optax.adam(5e-3), config)
        trainer.with_loss_fn(loss_fn, has_aux=True)
        trainer.with_gen_model_input_fn(lambda b: model_input(b) | {"alpha": alpha})
        rows = np.random.default_rng(0).integers(0, 1400, (steps, 64))
        trainer.train(map(batch, rows))
        served = add_lora(base, first, dropout=0.0)  # qwix cannot turn dropout off
        nnx.update(served, nnx.state(model, nnx.LoRAParam))
        inputs = model_input(batch(np.arange(1400, 1797)))["inputs"]
        logits, _ = nnx.jit(lambda model, x: model(*x))(served, inputs)
    exact = float((logits[:, 15:17].argmax(-1) == tokens[1400:, 16:]).all(1).mean())
    kl = trainer.metrics_logger.get_metric_history("", "kl", "train")[-50:].mean()
    print(f"kl {kl:.4f}  exact completions {exact:.3f}")
    return exact, float(kl)


if __name__ == "__main__":
    main()
