"""`RDropLoss` of kauldron_mlp.py in evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("kauldron")

from kauldron_mlp import RDropLoss


def test_the_loss_of_an_evaluation_is_cross_entropy():
    """Evaluators of Kauldron take the losses of training, unless they get others."""
    logits, labels = np.random.default_rng(0).normal(size=(1, 8, 3)), jnp.arange(8) % 3
    expected = -jax.nn.log_softmax(logits[0])[jnp.arange(8), labels].mean()
    found = RDropLoss(alpha=2.0).get_values(jnp.asarray(logits), labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
