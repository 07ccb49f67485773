"""`RDrop` of keras_digits.py before a class of KerasHub."""

import numpy as np
import pytest

keras_hub = pytest.importorskip("keras_hub")


def test_a_text_classifier_of_keras_hub_takes_rdrop():
    from keras_digits import RDrop

    class Classifier(RDrop, keras_hub.models.BertTextClassifier):
        """Classifier that trains with two passes."""

    backbone = keras_hub.models.BertBackbone(
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
