"""R-Drop for a Linen module with BatchNorm: the passes share one set of statistics.

Run: python examples/batch_norm.py

Each pass returns the running statistics that it would store. Their mean over passes is
stored, so a step counts once. In NNX, two calls of the model update the statistics in
turn, as two calls do in PyTorch, and need no code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from rdrop_jax import forward_passes, rdrop_loss


class Mlp(nn.Module):
    """Classifier with one BatchNorm and one dropout site."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        h = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(128)(x))
        h = nn.Dropout(0.3)(nn.relu(h), deterministic=not train)
        return nn.Dense(10)(h)


def main(steps: int = 300) -> float:
    """Train the model; return the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model, tx = Mlp(), optax.adam(1e-3)
    variables = model.init(jax.random.key(0), images[:1], train=False)
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)

    def loss_fn(params, stats, x, y, key):
        def forward(params, x, key):  # -> (logits, aux)
            return model.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )

        logits, new = forward_passes(forward, params, x, key, has_aux=True)
        stats = jax.tree.map(lambda s: s.mean(0), new["batch_stats"])
        loss, metrics = rdrop_loss(logits, y, alpha=1.0)
        return loss, (metrics, stats)

    @jax.jit
    def step(params, stats, opt_state, x, y, key):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, stats)), grads = grad_fn(params, stats, x, y, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state, metrics

    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        key = jax.random.fold_in(jax.random.key(1), t)
        x, y = images[rows], labels[rows]
        params, stats, opt_state, metrics = step(params, stats, opt_state, x, y, key)
    variables = {"params": params, "batch_stats": stats}
    logits = jnp.asarray(model.apply(variables, images[1400:], train=False))
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    print(f"kl {metrics['kl']:.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
