"""A small stochastic model in plain JAX, for tests of passes and steps."""

import jax
import jax.numpy as jnp
import numpy as np

from rdrop_jax import rdrop_loss


def forward(params, batch, key):
    h = jnp.tanh(batch["x"] @ params["in"])
    if key is not None:
        keep = jax.random.bernoulli(key, 0.8, h.shape)
        h = jnp.where(keep, h / 0.8, 0.0)
    return h @ params["out"]


def plain_forward(params, batch, key):
    """The same without dropout."""
    del key
    return forward(params, batch, None)


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["label"], where=batch["where"], **objective)


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "in": jnp.asarray(rng.normal(size=(5, 16)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(16, 3)), jnp.float32),
    }


def batch(rows=8, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32),
        "label": jnp.asarray(rng.integers(0, 3, rows)),
        "where": jnp.asarray(np.arange(rows) % 4 != 1),
    }
