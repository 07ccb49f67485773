"""Losses, masks and steps under 64-bit mode, bfloat16 activations and remat."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rdrop_jax import (
    dropout_mask,
    init_state,
    linen_forward,
    make_train_step,
    rdrop_loss,
)
from rdrop_jax.core.metrics import compute

pytest.importorskip("flax", reason="flax is in the extra train")

from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import ViT

TX = optax.sgd(0.1)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(16, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 5, 16).astype(np.int32)


def bits(wide):
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def loss(logits, batch, **objective):
    return rdrop_loss(logits, batch["label"], label_smoothing=0.1, **objective)


def train(*, wide=False, steps=3, **options):
    """Metrics of the last of a few steps, and the parameters, in float64."""
    with bits(wide):
        model = ViT(Size(1, 16, 2, 32), 5, 4, dropout=0.2, **options)
        forward = linen_forward(
            model, "x", train={"train": True}, evaluate={"train": False}
        )
        step = jax.jit(make_train_step(forward, TX, loss, alpha=2.0))
        batch = {"x": jnp.asarray(IMAGES), "label": jnp.asarray(LABELS)}
        init = jax.jit(functools.partial(model.init, train=False))
        params = init(jax.random.key(0), batch["x"])["params"]
        state = init_state(params, TX, jax.random.key(1))
        for _ in range(steps):
            state, metrics = step(state, batch)
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("f4")}
        return compute(metrics), jax.device_get(state.params)


@pytest.fixture(scope="module")
def reference():
    return train()


def assert_close(found, wanted, rtol, atol):
    (metrics, params), (wanted_metrics, wanted_params) = found, wanted
    for name, value in wanted_metrics.items():
        assert metrics[name] == pytest.approx(value, rel=rtol, abs=atol), name
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        params,
        wanted_params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_steps_in_64_bit_mode(reference, remat):
    assert_close(train(wide=True, remat=remat), reference, rtol=1e-4, atol=1e-5)


def test_steps_with_remat(reference):
    assert_close(train(remat=True), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wide", "remat"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
    ],
)
def test_steps_with_bfloat16_activations(reference, remat, wide):
    """bfloat16 has 8 bits: activations are off by 0.4 %, the sums of a step by more."""
    found = train(wide=wide, remat=remat, dtype=jnp.bfloat16)
    assert_close(found, reference, rtol=0.05, atol=0.01)


def test_masks_are_the_same_in_64_bit_mode():
    def draw():
        return np.asarray(dropout_mask(jax.random.key(3), 0.3, (7, 5, 9)))

    narrow = draw()
    with jax.enable_x64(True):
        np.testing.assert_array_equal(draw(), narrow)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_losses_in_64_bit_mode(dtype):
    logits = RNG.normal(0, 3, (2, 6, 50)).astype(np.float32)
    labels = RNG.integers(0, 50, 6)

    @jax.jit
    @jax.value_and_grad
    def gradient(z):
        return rdrop_loss(z, jnp.asarray(labels), alpha=3.0)[0]

    def value_and_grad():
        z = jnp.asarray(logits, dtype)
        return gradient(z)

    narrow, narrow_grad = value_and_grad()
    with jax.enable_x64(True):
        wide, wide_grad = value_and_grad()
        assert wide.dtype == jnp.float32  # of the logits, not of the mode
        assert wide_grad.dtype == dtype
        exact, exact_grad = gradient(jnp.asarray(logits, dtype).astype(jnp.float64))
        assert exact.dtype == jnp.float64
    np.testing.assert_allclose(wide, narrow, rtol=1e-6)
    np.testing.assert_allclose(narrow, exact, rtol=1e-6)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    for grad in (narrow_grad, wide_grad):
        np.testing.assert_allclose(
            grad.astype(np.float32), exact_grad, rtol=tolerance, atol=tolerance / 10
        )
