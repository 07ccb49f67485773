"""R-Drop for a model with several heads: a loss and a consistency term for each.

Run: python examples/several_heads.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from rdrop_jax import init_state, linen_forward, make_train_step, rdrop_loss

HEADS = {"digit": 1.0, "half": 0.5}  # weight of each head in the loss


class Mlp(nn.Module):
    """Classifier with two heads: the digit, and whether it is 5 or more."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        h = nn.relu(nn.Dense(128)(x))
        h = nn.Dropout(0.3)(h, deterministic=not train)
        return {"digit": nn.Dense(10)(h), "half": nn.Dense(2)(h)}


def loss(outputs, batch, **objective):
    """Sum the losses of the heads; each metric has the name of its head."""
    losses, metrics = [], {}
    for head, weight in HEADS.items():
        value, found = rdrop_loss(outputs[head], batch[head], **objective)
        losses.append(weight * value)
        metrics.update({f"{head}_{name}": mean for name, mean in found.items()})
    return sum(losses), metrics


def main(steps: int = 300) -> float:
    """Train the model; return the lower test accuracy of the two heads."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    targets = {"digit": labels, "half": (labels >= 5).astype(np.int32)}
    model, tx = Mlp(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), images[:1], train=False)["params"]
    forward = linen_forward(
        model, "x", train={"train": True}, evaluate={"train": False}
    )
    step = jax.jit(make_train_step(forward, tx, loss, alpha=1.0), donate_argnums=0)
    state = init_state(params, tx, jax.random.key(1))
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        batch = {"x": images[rows]} | {name: y[rows] for name, y in targets.items()}
        state, metrics = step(state, batch)
    outputs = forward(state.params, {"x": images[1400:]}, None)
    accuracies = {}
    for head in HEADS:
        hits = jnp.argmax(outputs[head], -1) == targets[head][1400:]
        accuracies[head] = float(jnp.mean(hits))
        kl = metrics[f"{head}_kl"]
        print(f"{head}: kl {kl:.4f}  test accuracy {accuracies[head]:.3f}")
    return min(accuracies.values())


if __name__ == "__main__":
    main()
