"""The consistency term alone, with losses that the library does not have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from rdrop_jax import consistency, rdrop_loss, rdrop_terms


def make(passes=2, positions=(3, 4), classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (passes, *positions, classes)).astype(np.float32)
    where = rng.random(positions) < 0.7
    weight = rng.uniform(0.5, 1.5, positions).astype(np.float32)
    return jnp.asarray(logits), jnp.asarray(where), jnp.asarray(weight)


def with_numpy(logits, where, weight, divergence):
    passes, w = len(logits), np.where(where, weight, 0.0).reshape(-1)
    rows = np.asarray(logits, np.float64).reshape(passes, len(w), -1)
    of = reference.DIVERGENCES[divergence]
    pairs = [(i, j) for i in range(passes) for j in range(i + 1, passes)]
    s = [np.mean([of(rows[i, n], rows[j, n]) for i, j in pairs]) for n in range(len(w))]
    return (w * s).sum() / w.sum()


@pytest.mark.parametrize("passes", [2, 3])
@pytest.mark.parametrize("divergence", list(reference.DIVERGENCES))
def test_value_equals_plain_numpy(passes, divergence):
    logits, where, weight = make(passes)
    found = consistency(logits, where=where, weight=weight, divergence=divergence)
    wanted = with_numpy(logits, where, weight, divergence)
    np.testing.assert_allclose(found.compute(), wanted, rtol=2e-6)


@pytest.mark.parametrize("stop_gradient", ["none", "targets"])
def test_gradient_is_that_of_the_objective(stop_gradient):
    logits, where, weight = make()
    labels = jnp.zeros(where.shape, int)

    def ours(z, w):
        term = consistency(z, where=where, weight=w, stop_gradient=stop_gradient)
        return term.compute()

    def of_terms(z, w):
        terms = rdrop_terms(
            z, labels, where=where, weight=w, stop_gradient=stop_gradient
        )
        return terms.kl.compute()

    found = jax.jit(jax.grad(ours, (0, 1)))(logits, weight)
    wanted = jax.jit(jax.grad(of_terms, (0, 1)))(logits, weight)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        found,
        wanted,
    )


def test_masked_positions_may_hold_anything():
    logits, where, _ = make()
    garbage = jnp.where(where[None, ..., None], logits, jnp.nan)
    of = jax.value_and_grad(lambda z: consistency(z, where=where).compute())
    value, gradient = of(garbage)
    np.testing.assert_allclose(value, of(logits)[0], rtol=1e-6)
    assert not np.any(gradient[:, ~np.asarray(where)])
    assert np.all(np.isfinite(gradient))
    assert float(consistency(garbage, where=jnp.zeros_like(where))) == 0.0


def test_bfloat16_is_computed_in_float32():
    logits, _, _ = make()
    short = logits.astype(jnp.bfloat16)
    found = consistency(short)
    assert found.total.dtype == jnp.float32
    np.testing.assert_allclose(
        found.compute(), consistency(short.astype(jnp.float32)).compute(), rtol=1e-6
    )
    gradient = jax.grad(lambda z: consistency(z).compute())(short)
    assert gradient.dtype == jnp.bfloat16


def test_means_of_microbatches_merge():
    logits, where, _ = make()
    parts = [
        consistency(logits[:, i : i + 1], where=where[i : i + 1]) for i in range(3)
    ]
    merged = functools.reduce(lambda a, b: a.merge(b), parts)
    whole = consistency(logits, where=where)
    np.testing.assert_allclose(merged.compute(), whole.compute(), rtol=1e-6)


def test_with_the_task_loss_it_is_the_objective():
    logits, where, _ = make()
    labels = jnp.ones(where.shape, int)
    task = rdrop_loss(logits, labels, alpha=0.0, where=where)[0]
    loss = task + 1.5 * consistency(logits, where=where).compute()
    wanted = rdrop_loss(logits, labels, alpha=1.5, where=where)[0]
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


def test_under_vmap():
    logits = jnp.stack([make(seed=i)[0] for i in range(3)])
    found = jax.vmap(lambda z: consistency(z).compute())(logits)
    wanted = [consistency(z).compute() for z in logits]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_function_compares_outputs_that_are_no_logits():
    """Fields [passes, batch, height, width, channels] by their mean squared error."""
    fields, _, _ = make(positions=(2, 3, 4))
    found = consistency(fields, divergence=lambda a, b: jnp.mean((a - b) ** 2, -1))
    np.testing.assert_allclose(
        found.compute(), np.mean((fields[0] - fields[1]) ** 2), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        ((1, 4, 3), {}, r"at least 2 passes on axis 0, found shape \(1, 4, 3\)"),
        ((3,), {}, "must be stacked over passes"),
        ((2, 4, 3), {"divergence": "kl"}, "divergence must be one of"),
        ((2, 4, 3), {"stop_gradient": "p"}, "stop_gradient must be"),
        ((2, 4, 3), {"where": np.ones(3, bool)}, "where must have one entry"),
    ],
)
def test_bad_input(logits, options, message, no_shape_types):
    with pytest.raises(ValueError, match=message):
        consistency(jnp.zeros(logits), **options)
