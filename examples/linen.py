"""R-Drop for a Flax Linen module. Run: python examples/linen.py"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from rdrop_jax import (
    check_stochastic,
    init_state,
    linen_forward,
    make_train_step,
    rdrop_loss,
)


class Mlp(nn.Module):
    """Classifier with one dropout site."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        h = nn.relu(nn.Dense(128)(x))
        h = nn.Dropout(0.3)(h, deterministic=not train)
        return nn.Dense(10)(h)


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def main(steps: int = 300) -> float:
    """Train the model; return the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model, tx = Mlp(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), images[:1], train=False)["params"]
    forward = linen_forward(
        model, "x", train={"train": True}, evaluate={"train": False}
    )
    check_stochastic(forward, params, {"x": images}, jax.random.key(0))
    step = jax.jit(make_train_step(forward, tx, loss, alpha=1.0), donate_argnums=0)
    state = init_state(params, tx, jax.random.key(1))
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        state, metrics = step(state, {"x": images[rows], "y": labels[rows]})
    logits = forward(state.params, {"x": images[1400:]}, None)
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    print(f"kl {metrics['kl'].compute():.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
