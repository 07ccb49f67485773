"""R-Drop for a Flax NNX module, with `nnx_forward`. Run: python examples/nnx.py

Dropout may store its random stream, as here, or the module may take ``rngs`` at each
call: every pass has its own masks either way. To keep `nnx.Optimizer` and your own
loop, see nnx_optimizer.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from rdrop_jax import (
    check_stochastic,
    init_state,
    make_train_step,
    nnx_forward,
    rdrop_loss,
)


class Mlp(nnx.Module):
    """Classifier with one dropout site."""

    def __init__(self, dropout: float, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 128, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def main(alpha=1.0, dropout=0.3, steps=300):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    model = Mlp(dropout, rngs=nnx.Rngs(0))
    forward, params = nnx_forward(model, "x")
    check_stochastic(forward, params, {"x": images}, jax.random.key(0))
    tx = optax.adam(1e-3)
    step = jax.jit(make_train_step(forward, tx, loss, alpha=alpha), donate_argnums=0)
    state = init_state(params, tx, jax.random.key(1))
    kls = []
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        batch = {"x": images[rows], "y": labels[rows]}
        state, metrics = step(state, batch)
        kls.append(float(metrics["kl"]))
    nnx.update(model, state.params)
    model.eval()
    logits = model(jnp.asarray(images[1400:]))
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
