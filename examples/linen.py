"""R-Drop for a Flax Linen module, on one device or with the batch over several.

Run: python examples/linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
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

    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        h = nn.relu(nn.Dense(128)(x))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        return nn.Dense(10)(h)


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def main(alpha=1.0, dropout=0.3, steps=300, devices=1):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model, tx = Mlp(dropout), optax.adam(1e-3)
    params = model.init(jax.random.key(0), images[:1], train=False)["params"]
    forward = linen_forward(
        model, "x", train={"train": True}, evaluate={"train": False}
    )
    check_stochastic(forward, params, {"x": images}, jax.random.key(0))
    step = jax.jit(make_train_step(forward, tx, loss, alpha=alpha), donate_argnums=0)
    mesh = Mesh(jax.devices()[:devices], ("data",))
    by_rows = NamedSharding(mesh, jax.P("data"))
    everywhere = NamedSharding(mesh, jax.P())
    state = jax.device_put(init_state(params, tx, jax.random.key(1)), everywhere)
    kls = []
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        batch = jax.device_put({"x": images[rows], "y": labels[rows]}, by_rows)
        state, metrics = step(state, batch)
        kls.append(float(metrics["kl"]))
    logits = forward(state.params, {"x": images[1400:]}, None)
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
