"""Logging the metrics of R-Drop: means over 50 steps, one JSON line each.

Run: python examples/log_metrics.py > metrics.jsonl

Metrics stay on the device, so that a step does not wait for the one before. Each is a
sum and a weight: the mean over several batches is exact, whatever their sizes.
"""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from rdrop_jax import (
    Mean,
    init_state,
    linen_forward,
    make_eval_step,
    make_train_step,
    rdrop_loss,
)
from rdrop_jax.core.metrics import compute, mean, merge


class Mlp(nn.Module):
    """Classifier with one dropout site."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        h = nn.relu(nn.Dense(128)(x))
        h = nn.Dropout(0.3)(h, deterministic=not train)
        return nn.Dense(10)(h)


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def scores(logits, batch):
    return {"accuracy": mean(1.0 * (jnp.argmax(logits, -1) == batch["y"]))}


def main(steps: int = 300, log_every: int = 50) -> float:
    """Train the model; return the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    data = {"x": np.asarray(images / 16, np.float32), "y": labels}
    model, tx = Mlp(), optax.adam(1e-3)
    params = model.init(jax.random.key(0), data["x"][:1], train=False)["params"]
    forward = linen_forward(
        model, "x", train={"train": True}, evaluate={"train": False}
    )
    step = jax.jit(make_train_step(forward, tx, loss, alpha=1.0), donate_argnums=0)
    evaluate = jax.jit(make_eval_step(forward, scores))
    state = init_state(params, tx, jax.random.key(1))
    window: dict[str, Mean] = {}
    for t in range(1, steps + 1):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        state, metrics = step(state, {name: x[rows] for name, x in data.items()})
        window = merge(window, metrics) if window else metrics
        if t % log_every == 0:
            values = compute(window)  # reads the device
            print(json.dumps({"step": t, "split": "train"} | values))
            window = {}
    total: dict[str, Mean] = {}
    for start in range(1400, 1797, 100):  # the last batch is smaller
        batch = {name: x[start : start + 100] for name, x in data.items()}
        found = evaluate(state.params, batch)
        total = merge(total, found) if total else found
    accuracy = compute(total)["accuracy"]
    print(json.dumps({"step": steps, "split": "test", "accuracy": accuracy}))
    return accuracy


if __name__ == "__main__":
    main()
