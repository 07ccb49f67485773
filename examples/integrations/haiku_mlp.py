"""R-Drop for a Haiku function, on one device or with the batch over several.

Run: pip install dm-haiku scikit-learn; python examples/integrations/haiku_mlp.py

`hk.transform` takes the key of a pass as it is. For BatchNorm, see
examples/batch_norm.py: like Linen there, `hk.transform_with_state` returns (outputs,
new state), and `forward_passes` takes the state as the aux of ``has_aux=True``.
"""

import haiku as hk
import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, init_state, make_train_step, rdrop_loss


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["y"], **objective)


def main(alpha=1.0, dropout=0.3, steps=300, devices=1):
    """Train; return the test accuracy and the mean divergence of the last steps."""
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)

    @hk.transform
    def model(x, rate):
        h = jax.nn.relu(hk.Linear(128)(x))
        if rate:
            h = hk.dropout(hk.next_rng_key(), rate, h)
        return hk.Linear(10)(h)

    def forward(params, batch, key):
        rate = 0.0 if key is None else dropout
        return model.apply(params, key, batch["x"], rate)

    params = model.init(jax.random.key(0), images[:1], 0.0)
    check_stochastic(forward, params, {"x": images}, jax.random.key(0))
    mesh = Mesh(jax.devices()[:devices], ("data",))
    rows = NamedSharding(mesh, jax.P("data"))
    everywhere = NamedSharding(mesh, jax.P())
    tx = optax.adam(1e-3)
    step = jax.jit(make_train_step(forward, tx, loss, alpha=alpha), donate_argnums=0)
    state = jax.device_put(init_state(params, tx, jax.random.key(1)), everywhere)
    kls = []
    for t in range(steps):
        i = np.random.default_rng(t).integers(0, 1400, 64)
        batch = jax.device_put({"x": images[i], "y": labels[i]}, rows)
        state, metrics = step(state, batch)
        kls.append(metrics["kl"].compute())
    logits = forward(state.params, {"x": images[1400:]}, None)
    accuracy = float((logits.argmax(-1) == labels[1400:]).mean())
    kl = float(np.mean(kls[-20:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, kl


if __name__ == "__main__":
    main()
