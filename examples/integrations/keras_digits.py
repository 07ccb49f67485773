"""R-Drop for a `keras.Model` on the JAX backend: fit, callbacks, distribution.

Run: pip install keras scikit-learn; python examples/integrations/keras_digits.py
Copy `merge` and `RDrop`, and put `RDrop` before your model class: docs/frameworks.md.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
from sklearn.datasets import load_digits

from rdrop_jax import check_stochastic, rdrop_loss


def merge(old, new, statistic):
    """Take the states of seed generators, which are integers, from the new state."""
    pairs = zip(old, new, strict=True)
    return [b if b.dtype == jnp.uint32 else statistic(a, b) for a, b in pairs]


class RDrop:
    """Trains the model class after it with two passes. Evaluation is unchanged."""

    def __init__(self, *args, alpha=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha, self.kl = alpha, keras.metrics.Mean(name="kl")

    def compute_loss_and_updates(self, params, state, metrics, x, y, weight, **kwargs):
        if not kwargs.pop("training", False):
            args = (params, state, metrics, x, y, weight)
            return super().compute_loss_and_updates(*args)
        call = {"training": True, "return_losses": True}
        first, one, losses = self.stateless_call(params, state, x, **call)
        # The second pass has new seeds, hence new masks, and the old statistics.
        state = merge(state, one, lambda old, _: old)
        second, two, _ = self.stateless_call(params, state, x, **call)
        # BatchNorm stores the mean of both passes' statistics: a step counts once.
        state = merge(one, two, lambda a, b: (a + b) / 2)
        labels = y.reshape(first.shape[:-1]).astype(int)  # many data sets: [rows, 1]
        # With the scale "mean", the learning rate of plain training fits.
        options = {"alpha": self.alpha, "weight": weight, "objective_scale": "mean"}
        logits = jnp.stack([first, second]).astype(jnp.float32)  # float16 underflows
        loss, terms = rdrop_loss(logits, labels, **options)
        loss += sum(losses)  # weight regularizers
        variables = [*self.metrics_variables, *self.optimizer.variables]
        values = zip(variables, [*metrics, *kwargs["optimizer_variables"]], strict=True)
        with keras.StatelessScope([*values]) as scope:
            self.kl.update_state(terms["kl"].compute())
            scaled = self.optimizer.scale_loss(loss)  # for float16
        metrics = [scope.get_current_value(v) for v in self.metrics_variables]
        return scaled, (loss, first, state, metrics)

    def check(self, x):
        """Stop if dropout is off, before training."""
        self(jax.tree.map(lambda rows: rows[:1], x))  # creates a subclass's variables
        params = [v.value for v in self.trainable_variables]
        state = [v.value for v in self.non_trainable_variables]

        def forward(params, x, key):
            seed = jax.random.key_data(key)
            seeded = [seed if v.dtype == jnp.uint32 else v for v in state]
            return self.stateless_call(params, seeded, x, training=True)[0]

        check_stochastic(forward, params, x, jax.random.key(0))


class Model(RDrop, keras.Model):
    """Model that trains with two passes."""


def main(alpha=1.0, dropout=0.3, epochs=15, devices=1):
    """Train the model; return the test accuracy and the mean KL of the last epoch."""
    found = keras.distribution.list_devices()[:devices]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found))
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images /= 16
    inputs = keras.Input([64])
    h = keras.layers.BatchNormalization(momentum=0.9)(keras.layers.Dense(128)(inputs))
    h = keras.layers.Dropout(dropout)(keras.layers.ReLU()(h))
    model = Model(inputs, keras.layers.Dense(10)(h), alpha=alpha)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.check(images)
    rows = map(slice, (0, 1344, 1400), (1344, 1400, 1792))  # full batches of 56
    train, val, test = ((images[i], labels[i]) for i in rows)
    how = {"batch_size": 56, "verbose": 0}
    stop = [keras.callbacks.EarlyStopping("val_loss", patience=3)]
    fit = model.fit(*train, epochs=epochs, callbacks=stop, validation_data=val, **how)
    scores = model.evaluate(*test, return_dict=True, **how)
    print(f"kl {fit.history['kl'][-1]:.4f}  test accuracy {scores['accuracy']:.3f}")
    return scores["accuracy"], fit.history["kl"][-1]


if __name__ == "__main__":
    main()
