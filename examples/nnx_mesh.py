"""R-Drop in NNX on all devices: batch over ``data``, kernels over ``model``.

Run: python examples/nnx_mesh.py

On a laptop: XLA_FLAGS=--xla_force_host_platform_device_count=8. Any number of devices
gives the same masks and, up to rounding, the same numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from rdrop_jax import rdrop_loss


class Mlp(nnx.Module):
    """Classifier with one dropout site, whose hidden units are sharded."""

    def __init__(self, *, rngs: nnx.Rngs, dropout: float = 0.3) -> None:
        init = nnx.initializers.lecun_normal()
        columns = nnx.with_partitioning(init, (None, "model"))
        rows = nnx.with_partitioning(init, ("model", None))
        self.hidden = nnx.Linear(64, 128, kernel_init=columns, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(128, 10, kernel_init=rows, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def loss_fn(model, x, y):
    return rdrop_loss(jnp.stack([model(x), model(x)]), y, alpha=1.0)


@nnx.jit
def train_step(model, optimizer, x, y):
    (_, metrics), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, x, y)
    optimizer.update(model, grads)
    return metrics


def main(steps: int = 300, devices: int | None = None) -> float:
    """Train the model; return the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    found = jax.devices()[:devices]
    shape = (len(found) // 2, 2) if len(found) > 1 else (1, 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(shape, ("data", "model"), auto, devices=found)
    with jax.set_mesh(mesh):
        model = Mlp(rngs=nnx.Rngs(0))  # sharded from creation
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        for t in range(steps):
            rows = np.random.default_rng(t).integers(0, 1400, 64)
            batch = (images[rows], labels[rows])
            x, y = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
            metrics = train_step(model, optimizer, x, y)
        print(
            model.hidden.kernel.sharding,
            optimizer.opt_state[0].mu.hidden.kernel.sharding,
        )
        model.eval()
        logits = model(jnp.asarray(images[1400:]))
        accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    print(f"kl {metrics['kl']:.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
