"""R-Drop in NNX on all devices: batch over ``data``, kernels over ``model``.

Run: python examples/nnx_mesh.py

On a laptop: XLA_FLAGS=--xla_force_host_platform_device_count=8. 1, 2, 4 and 8 devices
draw the same masks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, nnx_forward, rdrop_loss


class Mlp(nnx.Module):
    """Classifier with one dropout site, whose hidden units are sharded."""

    def __init__(self, dropout: float, *, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal()
        columns = nnx.with_partitioning(init, (None, "model"))
        rows = nnx.with_partitioning(init, ("model", None))
        self.hidden = nnx.Linear(64, 128, kernel_init=columns, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.out = nnx.Linear(128, 10, kernel_init=rows, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def loss_fn(model, x, y, alpha):
    return rdrop_loss(jnp.stack([model(x), model(x)]), y, alpha=alpha)


@nnx.jit
def train_step(model, optimizer, x, y, alpha):
    (_, metrics), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, x, y, alpha)
    optimizer.update(model, grads)
    return metrics


def main(alpha=1.0, dropout=0.3, steps=300, devices=None):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    found = jax.devices()[:devices]
    shape = (len(found) // 2, 2) if len(found) > 1 else (1, 1)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh(shape, ("data", "model"), auto, devices=found)
    with jax.set_mesh(mesh):
        model = Mlp(dropout, rngs=nnx.Rngs(0))  # sharded from creation
        forward = nnx_forward(model, "x")
        check_stochastic(*forward, {"x": images}, jax.random.key(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
        kls = []
        for t in range(steps):
            rows = np.random.default_rng(t).integers(0, 1400, 64)
            batch = (images[rows], labels[rows])
            x, y = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
            metrics = train_step(model, optimizer, x, y, alpha)
            kls.append(float(metrics["kl"]))
        print("kernel", model.hidden.kernel.sharding)
        print("moment", optimizer.opt_state[0].mu.hidden.kernel.sharding)
        model.eval()
        logits = model(jnp.asarray(images[1400:]))
        accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
