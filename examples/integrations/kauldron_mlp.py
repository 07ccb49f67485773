"""R-Drop in Kauldron: a model of two passes and a loss.

Run: pip install -r examples/integrations/requirements-kauldron.txt
     pip install --no-deps -r examples/integrations/no-deps-kauldron.txt
     python examples/integrations/kauldron_mlp.py
"""

import dataclasses
import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from kauldron import kd, kontext
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, consistency, rdrop_loss


class Mlp(nn.Module):
    """Classifier with one dropout site."""

    dropout: float

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(kd.nn.Dropout(self.dropout)(h))


class TwoPasses(nn.Module):
    """Stacks the logits of two calls in training, and of one otherwise."""

    model: nn.Module
    x: kontext.Key = "batch.x"
    is_training = kd.nn.train_property()

    def __call__(self, x):
        # Each call of a submodule draws its own dropout key.
        passes = 2 if self.is_training else 1
        return {"logits": jnp.stack([self.model(x) for _ in range(passes)])}


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class RDropLoss(kd.losses.Loss):
    """Mean cross entropy of both passes, plus alpha / 2 times their divergence."""

    alpha: float = 1.0
    logits: kontext.Key = "preds.logits"
    labels: kontext.Key = "batch.label"

    def get_values(self, logits, labels):
        # Evaluators reuse this loss on one pass. With "mean", the learning rate of
        # plain training fits.
        alpha = self.alpha * (len(logits) > 1)
        return rdrop_loss(logits, labels, alpha=alpha, objective_scale="mean")[0]


def main(alpha=1.0, dropout=0.3, steps=300, devices=1):
    """Train; return the test accuracy and the divergence on the training data."""
    # Kauldron takes all devices. The tests compare meshes of one and eight.
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("devices",))
    kd.sharding.DEVICES_MESH = mesh
    kd.sharding.REPLICATED = jax.NamedSharding(mesh, jax.P())
    kd.sharding.FIRST_DIM = jax.NamedSharding(mesh, jax.P("devices"))
    images, labels = load_digits(return_X_y=True)
    images = np.asarray(images / 16, np.float32)
    data = {"x": images[:1400], "label": labels[:1400].astype(np.int32)}
    trainer = kd.train.Trainer(
        train_ds=kd.data.InMemoryPipeline(
            loader=lambda: data, shuffle=True, batch_size=64, seed=0
        ),
        model=TwoPasses(Mlp(dropout)),
        optimizer=optax.adam(1e-3),
        train_losses={"rdrop": RDropLoss(alpha=alpha)},
        num_train_steps=steps,
        workdir=tempfile.mkdtemp(),
        writer=None,
    )

    def forward(params, x, key):
        variables, rngs = {"params": params}, {"dropout": key}
        how = {"is_training_property": True}
        return trainer.model.apply(variables, x, rngs=rngs, **how)["logits"]

    params = trainer.init_state().params
    check_stochastic(forward, params, images, jax.random.key(0))
    state, _ = trainer.train()
    kl = consistency(forward(state.params, data["x"], jax.random.key(0))).compute()
    test = {"params": state.params}, images[1400:]
    logits = trainer.model.apply(*test, is_training_property=False)["logits"][0]
    accuracy = float(jnp.mean(jnp.argmax(logits, -1) == labels[1400:]))
    print(f"kl {kl:.4f}  test accuracy {accuracy:.3f}")
    return accuracy, float(kl)


if __name__ == "__main__":
    main()
