"""R-Drop in your own NNX loop, with `nnx.Optimizer` and two calls of the model.

Run: python examples/nnx_optimizer.py

Dropout stores its random stream, so every call of the model draws a new mask. For a
model that takes ``rngs`` at each call, write ``model(x, rngs=rngs)`` twice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, nnx_forward, rdrop_loss


class Mlp(nnx.Module):
    """Classifier with one dropout site."""

    def __init__(self, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def loss_fn(model, x, y, alpha):
    logits = jnp.stack([model(x), model(x)])  # [2, batch, classes]
    return rdrop_loss(logits, y, alpha=alpha)


@nnx.jit
def train_step(model, optimizer, x, y, alpha):
    (_, metrics), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, x, y, alpha)
    optimizer.update(model, grads)
    return metrics


def main(alpha=1.0, dropout=0.3, steps=300):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model = Mlp(dropout, rngs=nnx.Rngs(0))
    forward = nnx_forward(model, "x")
    check_stochastic(*forward, {"x": images}, jax.random.key(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    kls = []
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        metrics = train_step(model, optimizer, images[rows], labels[rows], alpha)
        kls.append(float(metrics["kl"]))
    model.eval()  # dropout off
    logits = model(jnp.asarray(images[1400:]))
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
