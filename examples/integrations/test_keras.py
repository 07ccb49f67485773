"""Details of `RDrop` of keras_digits.py, before classes of Keras and KerasHub."""

import jax
import numpy as np
import pytest

keras = pytest.importorskip("keras")
hub = pytest.importorskip("keras_hub")

from keras_digits import Model, RDrop  # noqa: E402
from keras_hub_digits import Classifier  # noqa: E402


@pytest.fixture(autouse=True)
def one_device():
    found = keras.distribution.list_devices()[:1]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found))
    keras.utils.set_random_seed(0)


def rows():
    rng = np.random.default_rng(0)
    return rng.normal(1, 1, (16, 4)).astype("float32"), rng.integers(0, 3, 16)


def functional(optimizer):
    inputs = keras.Input([4])
    norm = keras.layers.BatchNormalization(momentum=0.9)
    h = keras.layers.Dropout(0.5)(norm(inputs))
    model = Model(inputs, keras.layers.Dense(3)(h))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    return model, norm


def test_a_step_counts_once_in_the_statistics():
    x, y = rows()
    model, norm = functional("sgd")
    model.fit(x, y, 16, verbose=0)
    np.testing.assert_allclose(norm.moving_mean, 0.1 * x.mean(0), rtol=1e-5)


def test_a_scale_of_the_loss_leaves_the_step_alone():
    """Keras scales losses for float16, and divides the gradients by the scale."""
    x, y = rows()
    found = []
    for scaled in (False, True):
        keras.utils.set_random_seed(0)
        optimizer = keras.optimizers.SGD(0.1)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, 1024.0)
        model, _ = functional(optimizer)
        loss = model.fit(x, y[:, None], 16, verbose=0).history["loss"]
        found.append([*loss, *model.get_weights()])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)


def test_a_subclass_trains():
    class Subclass(RDrop, keras.Model):
        def __init__(self):
            super().__init__(alpha=2.0)
            self.drop, self.dense = keras.layers.Dropout(0.5), keras.layers.Dense(3)

        def call(self, x, training=None):
            return self.dense(self.drop(x, training=training))

    x, y = rows()
    model = Subclass()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    model.check(x)
    assert model.fit(x, y, 16, verbose=0).history["kl"][0] > 0


@pytest.mark.parametrize("attempt", ["first", "second"])
def test_a_text_classifier_of_keras_hub_takes_rdrop(attempt):
    """Keras changes the base classes at the first model, and not again."""
    backbone = hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=8,
        dropout=0.2,
    )
    model = Classifier(backbone=backbone, num_classes=3, alpha=2.0)
    tokens = np.random.default_rng(0).integers(1, 50, (16, 8))
    x = {
        "token_ids": tokens,
        "padding_mask": np.ones_like(tokens),
        "segment_ids": np.zeros_like(tokens),
    }
    model.check(x)
    history = model.fit(x, tokens[:, 0] % 3, 8, epochs=2, verbose=0).history
    assert history["kl"][0] > 0
    assert np.isfinite(history["loss"]).all()
    assert model.alpha == 2.0
