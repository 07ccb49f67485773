"""The consistency term alone, with losses that the library does not have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from rdrop_jax import (
    LinearOutput,
    consistency,
    large_vocab_consistency,
    rdrop_loss,
    rdrop_terms,
)
from rdrop_jax.training.mesh import make_mesh


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


def test_a_function_of_half_precision_outputs_is_summed_in_float32():
    fields = jnp.stack([jnp.zeros((257, 4)), jnp.ones((257, 4))]).astype(jnp.bfloat16)
    found = consistency(fields, divergence=lambda a, b: jnp.mean(jnp.abs(a - b), -1))
    assert found.total.dtype == found.weight.dtype == jnp.float32
    assert (float(found.total), float(found.weight)) == (257.0, 257.0)


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


def sides(dtype=np.float32):
    """Two linear outputs of different widths; the second kernel is tied."""
    rng = np.random.default_rng(1)
    shapes = ((3, 4, 5), (5, 9), (9,), (3, 4, 6), (9, 6), (3, 4))
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in shapes)


def from_hidden(h1, k1, b, h2, k2, weight, **options):
    first, second = LinearOutput(h1, k1, b), LinearOutput(h2, k2)
    term = large_vocab_consistency(
        first, second, tied=(False, True), weight=weight, chunk_size=5, **options
    )
    return term.compute()


def from_logits(h1, k1, b, h2, k2, weight, stop_gradient="none", **options):
    z = [h1 @ k1 + b[None, None], h2 @ k2.T]
    if stop_gradient in ("first", "second"):
        i = ("first", "second").index(stop_gradient)
        z[i], stop_gradient = jax.lax.stop_gradient(z[i]), "none"
    term = consistency(
        jnp.stack(z), weight=weight, stop_gradient=stop_gradient, **options
    )
    return term.compute()


@pytest.mark.parametrize(
    ("divergence", "stop_gradient"),
    [
        ("symmetric_kl", "none"),
        ("symmetric_kl", "targets"),
        ("symmetric_kl", "second"),
        ("forward_kl", "first"),
        pytest.param("forward_kl", "none", marks=pytest.mark.slow),
        pytest.param("reverse_kl", "none", marks=pytest.mark.slow),
        pytest.param("reverse_kl", "targets", marks=pytest.mark.slow),
    ],
)
def test_from_hidden_states_it_is_that_of_the_logits(divergence, stop_gradient):
    options = {"divergence": divergence, "stop_gradient": stop_gradient}
    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(of, **options), range(6)))(
            *sides()
        )
        for of in (from_hidden, from_logits)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
        found,
        wanted,
    )


def test_one_kernel_for_both_sides():
    """Its gradient is one sum."""
    h1, kernel, bias, _, _, _ = sides()

    def term(h, k, b):
        return large_vocab_consistency(
            LinearOutput(h, k, b), LinearOutput(h * 0.5, k, b)
        ).compute()

    def plain(h, k, b):
        z = h @ k + b[None, None]
        return consistency(jnp.stack([z, (h * 0.5) @ k + b[None, None]])).compute()

    found, wanted = (
        jax.value_and_grad(f, (0, 1, 2))(h1, kernel, bias) for f in (term, plain)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        wanted,
    )
    text = str(jax.make_jaxpr(jax.grad(term, 1))(h1, kernel, bias))
    assert text.count("dot_general") == 3


def test_a_square_kernel_may_be_tied_on_one_side():
    h, kernel = jnp.eye(3)[:2], jnp.arange(9.0).reshape(3, 3)
    term = large_vocab_consistency(
        LinearOutput(h, kernel), LinearOutput(h, kernel), tied=(False, True)
    )
    wanted = consistency(jnp.stack([h @ kernel, h @ kernel.T]))
    np.testing.assert_allclose(term.compute(), wanted.compute(), rtol=1e-5)


def test_an_impossible_class_and_masked_positions():
    bias = jnp.zeros(9).at[2].set(-jnp.inf)
    h1, kernel, _, _, _, _ = sides()
    where = jnp.zeros((3, 4), bool).at[0].set(True)
    first = LinearOutput(jnp.where(where[..., None], h1, jnp.nan), kernel, bias)

    def term(of, h):
        second = LinearOutput(h, kernel, of)
        return large_vocab_consistency(
            first, second, divergence="forward_kl", where=where
        ).compute()

    both, gradient = jax.value_and_grad(functools.partial(term, bias))(h1 * 0.5)
    assert np.isfinite(both)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[1:])
    assert np.isfinite(term(jnp.zeros(9), h1))  # q has a class that p excludes
    assert np.isinf(term(jnp.zeros(9).at[0].set(-jnp.inf), h1))


@pytest.mark.parametrize("tensor", [1, 2])
def test_from_hidden_states_on_eight_devices(tensor):
    rng = np.random.default_rng(0)
    shapes = ((8, 4), (4, 6), (8, 3), (3, 6))
    arrays = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    mesh = make_mesh(data=8 // tensor, fsdp=1, tensor=tensor)

    def term(h1, k1, h2, k2, mesh):
        return large_vocab_consistency(
            LinearOutput(h1, k1),
            LinearOutput(h2, k2),
            stop_gradient="first",
            mesh=mesh,
        ).compute()

    found, wanted = (
        jax.jit(jax.value_and_grad(functools.partial(term, mesh=m), (1, 2, 3)))(*arrays)
        for m in (mesh, None)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        wanted,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "js"}, "divergence: expected one of"),
        ({"stop_gradient": "both"}, "stop_gradient: expected one of"),
        ({"tied": True}, r"first\.kernel: expected \[vocab, width\] with width 5"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_bad_sides(change, message):
    h1, k1, b, h2, k2, _ = sides()
    with pytest.raises(ValueError, match=message):
        large_vocab_consistency(
            LinearOutput(h1, k1, b),
            LinearOutput(h2, k2),
            **({"tied": (False, True)} | change),
        )
    with pytest.raises(ValueError, match=r"second: expected the positions"):
        large_vocab_consistency(LinearOutput(h1, k1), LinearOutput(h1[:2], k1))
