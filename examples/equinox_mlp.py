"""R-Drop for an Equinox module, whose layers take one example and one key each.

On one device or with the batch over several.
Run: pip install equinox; python examples/equinox_mlp.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, init_state, make_train_step, rdrop_loss


class Mlp(eqx.Module):
    """Classifier with one dropout site."""

    hidden: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, dropout: float, key: jax.Array) -> None:
        k1, k2 = jax.random.split(key)
        self.hidden = eqx.nn.Linear(64, 128, key=k1)
        self.dropout = eqx.nn.Dropout(dropout)
        self.out = eqx.nn.Linear(128, 10, key=k2)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        h = jax.nn.relu(self.hidden(x))
        return self.out(self.dropout(h, key=key, inference=key is None))


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def main(alpha=1.0, dropout=0.3, steps=300, devices=1):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model = Mlp(dropout, jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params, batch, key):
        model = eqx.combine(params, static)
        if key is None:
            return jax.vmap(lambda x: model(x, None))(batch["x"])
        keys = jax.random.split(key, len(batch["x"]))  # a mask per example
        return jax.vmap(model)(batch["x"], keys)

    check_stochastic(forward, params, {"x": images}, jax.random.key(0))
    tx = optax.adam(1e-3)
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
