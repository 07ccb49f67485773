"""What every example shows. `.ci/integrations` runs those of one framework (-k).

`make test` runs the same functions on the examples of Flax, Equinox and plain JAX.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy

# Score that main() reaches.
SCORES = {
    "haiku_mlp": 0.85,
    "kauldron_mlp": 0.85,
    "keras_digits": 0.88,
    "keras_hub_digits": 0.7,
    "tunix_lora": 0.6,
}
# Options of a short training.
SHORT = {"keras_digits": {"epochs": 3}, "keras_hub_digits": {"epochs": 2}}
SHORT |= {"tunix_lora": {"steps": 60}}
# Module that calls the loss, if it is not that of the example.
LOSSES = {"keras_hub_digits": "keras_digits"}
pytestmark = pytest.mark.parametrize("name", SCORES)


@functools.cache
def trained(name, **options):
    """Return the score and the divergence of a training."""
    return importlib.import_module(name).main(**options)


def short(name, **options):
    return trained(name, **SHORT.get(name, {"steps": 100}), **options)


def test_reaches_its_score(name):
    score, kl = trained(name)
    assert score >= SCORES[name]
    assert kl > 0


def test_divergence_falls_when_alpha_rises(name):
    assert short(name, alpha=0.1)[1] > short(name, alpha=10.0)[1] > 0


def test_stops_if_dropout_is_off(name):
    with pytest.raises(ValueError, match="two dropout keys give the same outputs"):
        trained(name, dropout=0.0)


def watch(name, patch):
    """Store the loss, its arguments and the sharding of its outputs at each step."""
    module, losses, shards = importlib.import_module(LOSSES.get(name, name)), [], []
    for function in {"rdrop_loss", "large_vocab_rdrop_loss"} & set(vars(module)):
        original = getattr(module, function)

        def spy(outputs, *args, original=original, **kwargs):
            loss, metrics = original(outputs, *args, **kwargs)
            *kernel, labels = args
            logits = outputs @ kernel[0].T if kernel else outputs
            weight = kwargs.get("where")
            weight = jnp.ones(labels.shape) if weight is None else weight
            scale = 0.5 if kwargs.get("objective_scale") == "mean" else 1.0
            stored = (loss, logits, labels, weight, scale, kwargs["alpha"])
            jax.debug.callback(lambda *x: losses.append(x), *stored)
            for x in (outputs, *kernel):
                jax.debug.inspect_array_sharding(
                    x,
                    callback=lambda found, shape=x.shape: shards.append(
                        tuple(np.divide(shape, found.shard_shape(shape)).astype(int))
                    ),
                )
            return loss, metrics

        patch.setattr(module, function, spy)
    return losses, shards


def test_one_and_eight_devices_agree(name):
    """Compare scores, and look at the shards of the outputs of both passes."""
    one = short(name, alpha=0.1, devices=1)
    with pytest.MonkeyPatch.context() as patch:
        _, shards = watch(name, patch)
        eight = short(name, alpha=0.1, devices=8)
    assert eight == pytest.approx(one, rel=0.02)
    outputs = [counts for counts in shards if len(counts) > 2]
    assert outputs
    if name == "tunix_lora":  # which leaves activations on CPUs to XLA
        assert {np.prod(counts) for counts in outputs} == {8}
        return
    rows = 4 if name == "nnx_mesh" else 8  # which shards its kernels over 2 devices
    assert {(counts[0], counts[1], *set(counts[2:])) for counts in outputs} == {
        (1, rows, 1)
    }


def test_loss_is_that_of_stored_logits(name):
    """Compare the loss of the first step with float64 numpy on its logits."""
    with pytest.MonkeyPatch.context() as patch:
        losses, _ = watch(name, patch)
        short(name, alpha=0.5)
    compare(*losses[0])


def compare(*stored):
    loss, logits, labels, weight, scale, alpha = (np.asarray(x) for x in stored)
    log_p = scipy.special.log_softmax(logits.astype(np.float64), -1)
    ce = -np.take_along_axis(log_p, labels[None, ..., None], -1)[..., 0].sum(0)
    one, two = log_p
    kl = ((np.exp(one) - np.exp(two)) * (one - two)).sum(-1) / 2
    expected = np.average(ce + alpha * kl, weights=weight) * scale
    assert loss == pytest.approx(expected, rel=1e-4)
