"""R-Drop for a text classifier of KerasHub, on digits as sequences of tokens.

Run: pip install keras-hub scikit-learn
     python examples/integrations/keras_hub_digits.py

`RDrop` of keras_digits.py goes before the class of KerasHub. This backbone is small and
has random weights; `Classifier.from_preset(NAME, num_classes=10)` loads published ones.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_hub
import numpy as np
from keras_digits import RDrop
from sklearn.datasets import load_digits


class Classifier(RDrop, keras_hub.models.BertTextClassifier):
    """Classifier that trains with two passes."""


def main(alpha=1.0, dropout=0.1, epochs=30, devices=1):
    """Train the model; return the test accuracy and the mean KL of the last epoch."""
    found = keras.distribution.list_devices()[:devices]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found))
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    levels = images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).round().reshape(-1, 16)
    x = {
        "token_ids": levels.astype(int) + 1,
        "padding_mask": np.ones((1797, 16), int),
        "segment_ids": np.zeros((1797, 16), int),
    }
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=18,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        max_sequence_length=16,
        dropout=dropout,
    )
    options = {"num_classes": 10, "alpha": alpha, "dropout": dropout}
    model = Classifier(backbone=backbone, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    model.check(x)
    rows = map(slice, (0, 1400), (1400, 1792))  # full batches of 56
    train, test = (({k: v[i] for k, v in x.items()}, labels[i]) for i in rows)
    fit = model.fit(*train, epochs=epochs, batch_size=56, verbose=0)
    scores = model.evaluate(*test, batch_size=56, return_dict=True, verbose=0)
    print(f"kl {fit.history['kl'][-1]:.4f}  test accuracy {scores['accuracy']:.3f}")
    return scores["accuracy"], fit.history["kl"][-1]


if __name__ == "__main__":
    main()
