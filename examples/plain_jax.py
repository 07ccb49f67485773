"""R-Drop in plain JAX: two calls, one loss, on one device or several.

Run: python examples/plain_jax.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, forward_passes, rdrop_loss


def init(key: jax.Array) -> dict[str, jax.Array]:
    k1, k2 = jax.random.split(key)
    dense = jax.nn.initializers.he_normal()
    return {"w1": dense(k1, (64, 128)), "w2": dense(k2, (128, 10))}


def apply(params: dict[str, jax.Array], x: jax.Array, key: jax.Array | None, rate=0.3):
    h = jax.nn.relu(x @ params["w1"])
    if key is not None:
        kept = jax.random.bernoulli(key, 1 - rate, h.shape)
        h = jnp.where(kept, h / (1 - rate), 0.0)
    return h @ params["w2"]


def main(alpha=1.0, dropout=0.3, steps=300, devices=1):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    tx, forward = optax.adam(1e-3), partial(apply, rate=dropout)
    params = init(jax.random.key(0))
    check_stochastic(forward, params, images, jax.random.key(0))
    mesh = Mesh(jax.devices()[:devices], ("data",))
    by_rows = NamedSharding(mesh, jax.P("data"))
    everywhere = NamedSharding(mesh, jax.P())
    params, opt_state = jax.device_put((params, tx.init(params)), everywhere)

    def loss_fn(params, x, y, key):
        logits = forward_passes(forward, params, x, key)  # [2, batch, classes]
        return rdrop_loss(logits, y, alpha=alpha)

    @jax.jit
    def step(params, opt_state, x, y, key):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, metrics), grads = grad_fn(params, x, y, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    kls = []
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        x, y = jax.device_put((images[rows], labels[rows]), by_rows)
        key = jax.random.fold_in(jax.random.key(1), t)
        params, opt_state, metrics = step(params, opt_state, x, y, key)
        kls.append(float(metrics["kl"]))
    logits = apply(params, jnp.asarray(images[1400:]), None)
    accuracy = float((logits.argmax(-1) == labels[1400:]).mean())
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
