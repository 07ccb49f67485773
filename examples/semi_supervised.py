"""R-Drop with few labels: unlabelled digits only enter the consistency term.

Run: python examples/semi_supervised.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from rdrop_jax import init_state, linen_forward, make_train_step, rdrop_loss

NUM_LABELLED = 50


class Mlp(nn.Module):
    """Classifier with dropout on its input and hidden units."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for width in (256, 256):
            x = nn.Dropout(0.2)(x, deterministic=not train)
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(nn.Dropout(0.2)(x, deterministic=not train))


def loss(logits, batch, **objective):
    labelled = batch["labelled"]
    return rdrop_loss(logits, batch["y"], label_weight=labelled, **objective)


def main(steps: int = 2000, alpha: float = 1.0, seed: int = 0) -> float:
    """Train on 50 labels and 1,350 unlabelled images; return the test accuracy."""
    order = np.random.default_rng(seed).permutation(1797)
    images, truth = (x[order] for x in load_digits(return_X_y=True))
    images = np.asarray(images / 16, np.float32)
    labels = np.where(np.arange(1797) < NUM_LABELLED, truth, -1)  # -1: no label
    model, tx = Mlp(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), images[:1], train=False)["params"]
    forward = linen_forward(
        model, "x", train={"train": True}, evaluate={"train": False}
    )
    ramp = optax.linear_schedule(0.0, alpha, steps // 2)  # labels first
    step = jax.jit(make_train_step(forward, tx, loss, alpha=ramp), donate_argnums=0)
    state = init_state(params, tx, jax.random.key(1))
    for t in range(steps):
        rng = np.random.default_rng(t)
        rows = np.concatenate(
            [rng.integers(0, NUM_LABELLED, 32), rng.integers(NUM_LABELLED, 1400, 96)]
        )
        labelled = (rows < NUM_LABELLED).astype(np.float32)
        batch = {"x": images[rows], "y": labels[rows], "labelled": labelled}
        state, metrics = step(state, batch)
    logits = forward(state.params, {"x": images[1400:]}, None)
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == truth[1400:]))
    print(f"kl {metrics['kl'].compute():.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
