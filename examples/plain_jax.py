"""R-Drop in plain JAX: two calls, one loss. Run: python examples/plain_jax.py"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, forward_passes, rdrop_loss

images, labels = load_digits(return_X_y=True)
images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
train, test = slice(0, 1400), slice(1400, None)


def init(key: jax.Array) -> dict[str, jax.Array]:
    k1, k2 = jax.random.split(key)
    dense = jax.nn.initializers.he_normal()
    return {"w1": dense(k1, (64, 128)), "w2": dense(k2, (128, 10))}


def apply(params: dict[str, jax.Array], x: jax.Array, key: jax.Array | None):
    h = jax.nn.relu(x @ params["w1"])
    if key is not None:
        h = jnp.where(jax.random.bernoulli(key, 0.7, h.shape), h / 0.7, 0.0)
    return h @ params["w2"]


def main(steps: int = 300) -> float:
    """Train the model; return the test accuracy."""
    tx = optax.adam(1e-3)
    params = init(jax.random.key(0))
    check_stochastic(apply, params, images, jax.random.key(0))
    opt_state = tx.init(params)

    def loss_fn(params, x, y, key):
        logits = forward_passes(apply, params, x, key)  # [2, batch, classes]
        return rdrop_loss(logits, y, alpha=1.0)

    @jax.jit
    def step(params, opt_state, t):
        rows_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), t))
        rows = jax.random.randint(rows_key, (64,), 0, 1400)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, metrics), grads = grad_fn(params, images[rows], labels[rows], key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    for t in range(steps):
        params, opt_state, metrics = step(params, opt_state, t)
    hits = jnp.argmax(apply(params, images[test], None), -1) == labels[test]
    accuracy = float(jnp.mean(hits))
    print(f"kl {metrics['kl'].compute():.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
