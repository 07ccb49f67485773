"""What every example shows. `.ci/integrations` runs those of one framework (-k)."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

# Score that main() reaches, and options of a short training.
EXAMPLES = {
    "haiku_mlp": (0.85, {"steps": 100}),
    "keras_digits": (0.88, {"epochs": 3}),
    "tunix_lora": (0.6, {"steps": 60}),
}
pytestmark = pytest.mark.parametrize("name", EXAMPLES)


@functools.cache
def trained(name, **options):
    """Return the score and the divergence of a training."""
    return importlib.import_module(name).main(**options)


def short(name, **options):
    return trained(name, **EXAMPLES[name][1], **options)


def test_reaches_its_score(name):
    score, kl = trained(name)
    assert score >= EXAMPLES[name][0]
    assert kl > 0


def test_divergence_falls_when_alpha_rises(name):
    assert short(name, alpha=0.1)[1] > short(name, alpha=10.0)[1] > 0


def test_stops_if_dropout_is_off(name):
    with pytest.raises(ValueError, match="two dropout keys give the same outputs"):
        trained(name, dropout=0.0)


def test_one_and_eight_devices_agree(name):
    one, eight = (short(name, alpha=0.1, devices=n) for n in (1, 8))
    assert eight == pytest.approx(one, rel=0.02)


def test_loss_is_that_of_stored_logits(name, monkeypatch):
    """Compare the loss of the first step with float64 numpy on its logits."""
    module, seen = importlib.import_module(name), []
    for function in {"rdrop_loss", "large_vocab_rdrop_loss"} & set(vars(module)):
        original = getattr(module, function)

        def spy(outputs, *args, original=original, **kwargs):
            loss, metrics = original(outputs, *args, **kwargs)
            *kernel, labels = args
            logits = outputs @ kernel[0].T if kernel else outputs
            weight = kwargs.get("where", jnp.ones(labels.shape))
            scale = 0.5 if kwargs.get("objective_scale") == "mean" else 1.0
            stored = (loss, logits, labels, weight, scale, kwargs["alpha"])
            jax.debug.callback(lambda *x: seen.append(x), *stored)
            return loss, metrics

        monkeypatch.setattr(module, function, spy)
    short(name, alpha=0.5)
    loss, logits, labels, weight, scale, alpha = (np.asarray(x) for x in seen[0])
    log_p = scipy.special.log_softmax(logits.astype(np.float64), -1)
    ce = -np.take_along_axis(log_p, labels[None, ..., None], -1)[..., 0].sum(0)
    one, two = log_p
    kl = ((np.exp(one) - np.exp(two)) * (one - two)).sum(-1) / 2
    expected = np.average(ce + alpha * kl, weights=weight) * scale
    assert loss == pytest.approx(expected, rel=1e-4)
