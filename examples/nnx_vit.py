"""R-Drop for a Vision Transformer in NNX, on digits. Run: python examples/nnx_vit.py

`make train` trains the Linen one of this package, rdrop_jax/models/vit.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from rdrop_jax import rdrop_loss

WIDTH, DEPTH, HEADS, PATCH, DROPOUT = 64, 2, 4, 2, 0.1


class Block(nnx.Module):
    """Pre-LayerNorm Transformer block with two dropout sites."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(DROPOUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class Vit(nnx.Module):
    """Classifier of 8 x 8 images: 16 patches, their mean, a linear head."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Conv(1, WIDTH, (PATCH, PATCH), strides=PATCH, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.normal((1, 16, WIDTH)))
        self.blocks = nnx.List([Block(rngs=rngs) for _ in range(DEPTH)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.embed(images).reshape(len(images), -1, WIDTH) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def loss_fn(model, x, y):
    return rdrop_loss(jnp.stack([model(x), model(x)]), y, alpha=1.0)


@nnx.jit
def train_step(model, optimizer, x, y):
    (_, metrics), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, x, y)
    optimizer.update(model, grads)
    return metrics


def main(steps: int = 300) -> float:
    """Train the model; return the test accuracy."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32).reshape(-1, 8, 8, 1)
    model = Vit(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    for t in range(steps):
        rows = np.random.default_rng(t).integers(0, 1400, 64)
        metrics = train_step(model, optimizer, images[rows], labels[rows])
    model.eval()
    logits = model(jnp.asarray(images[1400:]))
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    print(f"kl {metrics['kl']:.4f}  test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()
