"""Per-position functions: shapes, masks, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from rdrop_jax import (
    bernoulli_cross_entropy,
    bernoulli_symmetric_kl,
    js_divergence,
    kl_divergence,
    softmax_cross_entropy,
    squared_difference,
    squared_error,
    symmetric_kl,
)

PAIRS = (
    symmetric_kl,
    kl_divergence,
    js_divergence,
    squared_difference,
    bernoulli_symmetric_kl,
)


def logits(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("function", PAIRS)
def test_pairs_keep_positions_and_clear_what_is_masked(function):
    a, b = logits(3, 2, 5), logits(3, 2, 5, seed=1)
    where = jnp.array([[True, False], [False, True], [True, True]])
    plain = function(a, b)
    assert plain.shape == (3, 2)
    wild = jnp.where(where[..., None], a, jnp.nan)
    masked, grad = jax.value_and_grad(
        lambda a: function(a, b, where=where).sum(), has_aux=False
    )(wild)
    np.testing.assert_allclose(masked, plain[where].sum(), rtol=1e-6)
    assert np.all(np.isfinite(grad))
    assert not np.any(grad[~where])


@pytest.mark.parametrize("function", PAIRS)
def test_pairs_are_zero_on_equal_passes(function):
    a = logits(4, 5)
    np.testing.assert_allclose(function(a, a), np.zeros(4), atol=1e-7)


@pytest.mark.parametrize("function", PAIRS)
def test_half_precision_comes_back_in_float32(function):
    a, b = logits(4, 5), logits(4, 5, seed=1)
    assert function(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        wide = function(a.astype(jnp.float64), b.astype(jnp.float64))
        assert wide.dtype == jnp.float64


def test_smoothing_runs_over_possible_classes_alone():
    z = np.array([[0.3, -np.inf, 1.0, -0.2], [0.1, 0.2, -np.inf, -np.inf]])
    y = np.array([2, 0])
    for smoothing in ("uniform", "fairseq"):
        found = softmax_cross_entropy(
            jnp.asarray(z, jnp.float32),
            jnp.asarray(y),
            label_smoothing=0.2,
            smoothing=smoothing,
        )
        wanted = [reference.cross_entropy(z[i], y[i], 0.2, smoothing) for i in range(2)]
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_label_on_an_impossible_class_is_infinite():
    z = jnp.array([[0.0, -jnp.inf, 1.0]])
    assert np.isposinf(softmax_cross_entropy(z, jnp.array([1]))[0])
    assert np.isposinf(softmax_cross_entropy(z, jnp.array([[0.5, 0.5, 0.0]]))[0])
    assert np.isfinite(softmax_cross_entropy(z, jnp.array([[0.5, 0.0, 0.5]]))[0])


def test_infinite_logits_keep_gradients_finite():
    a = jnp.array([[0.5, -jnp.inf, 1.5, -0.2]])
    b = jnp.array([[0.1, -jnp.inf, 1.9, 0.3]])
    for function in (symmetric_kl, kl_divergence, js_divergence, squared_difference):
        grads = jax.grad(lambda a, b, f=function: f(a, b).sum(), (0, 1))(a, b)
        for grad in grads:
            assert np.all(np.isfinite(grad))
            assert float(grad[0, 1]) == 0.0
    grad = jax.grad(
        lambda a: softmax_cross_entropy(a, jnp.array([2]), label_smoothing=0.1).sum()
    )(a)
    assert np.all(np.isfinite(grad))
    assert float(grad[0, 1]) == 0.0


def test_one_sided_impossible_classes():
    a, b = jnp.array([[0.0, 1.0]]), jnp.array([[0.0, -jnp.inf]])
    assert np.isposinf(kl_divergence(a, b)[0])
    assert np.isfinite(kl_divergence(b, a)[0])
    assert np.isfinite(js_divergence(a, b)[0])
    assert np.isfinite(squared_difference(a, b)[0])


def test_bernoulli_equals_its_definition():
    z, y = logits(3, 4), jnp.array([[0, 1, 1, 0]] * 3)
    p = np.asarray(jax.nn.sigmoid(z), np.float64)
    wanted = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(bernoulli_cross_entropy(z, y), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        bernoulli_cross_entropy(z, y.astype(bool)), wanted, rtol=1e-5
    )


def test_squared_error_masks_and_sums():
    a, b = logits(3, 2), logits(3, 2, seed=1)
    where = jnp.array([True, False, True])
    found = squared_error(a.at[1].set(jnp.nan), b, where=where)
    wanted = np.where(where, ((np.asarray(a) - np.asarray(b)) ** 2).sum(1), 0.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.usefixtures("no_shape_types")
@pytest.mark.parametrize("function", PAIRS)
def test_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"same shape: found \(3, 2\) and \(1, 2\)"):
        function(logits(3, 2), logits(1, 2))


def test_labels_of_another_smoothing_are_refused():
    with pytest.raises(ValueError, match="smoothing must be one of"):
        softmax_cross_entropy(logits(2, 3), jnp.array([0, 1]), smoothing="x")
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
        softmax_cross_entropy(logits(2, 3), jnp.array([0, 1]), label_smoothing=-0.1)
