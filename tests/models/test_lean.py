"""Few bytes on accelerators: equal to the plain formulas, no float32 copies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from rdrop_jax.core.dropout import dropout
from rdrop_jax.models import attend as attend_lib
from rdrop_jax.models import layers
from rdrop_jax.models.attend import attend
from rdrop_jax.models.layers import Attention, Mlp
from rdrop_jax.training.mesh import make_mesh

LENGTHS = jnp.array([5, 2, 0])  # the last row is all padding
WHERE = (jnp.arange(5)[None] < LENGTHS[:, None])[:, None, None]


def plain(query, key, value, bias, where, mask_key, rate):
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
    scores = scores + bias
    if where is not None:
        scores = jnp.where(where, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores)
    if rate:
        weights = dropout(mask_key, weights, rate)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


@pytest.mark.parametrize(
    ("where", "rate", "target", "rows"),
    [(None, 0.0, "tpu", 3), (WHERE, 0.3, "tpu", 1), (WHERE, 0.3, "gpu", 3)],
)
def test_attention_and_its_gradients_equal_the_plain_formula(
    where, rate, target, rows, monkeypatch
):
    monkeypatch.setattr(attend_lib, "platform", lambda: target)
    query, key, value, slope = jax.random.normal(jax.random.key(0), (4, 3, 5, 2, 4))
    bias = jax.random.normal(jax.random.key(2), (rows, 2, 5, 5))
    mask_key = jax.random.key(1) if rate else None

    def lean(q, k, v, bias):
        return attend(q, k, v, where, mask_key, rate, "hash", bias)

    def formula(q, k, v, bias):
        return plain(q, k, v, bias, where, mask_key, rate)

    def both(function):
        out, pull = jax.vjp(function, query, key, value, bias)
        return out, *pull(slope)

    for a, b in zip(jax.jit(both, static_argnums=0)(lean), both(formula), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_attention_has_second_derivatives_in_reverse():
    x, slope = jax.random.normal(jax.random.key(0), (2, 1, 3, 1, 2))
    bias = jnp.zeros((1, 1, 3, 3))

    def second(attention):
        first = jax.grad(lambda q: jnp.sum(attention(q) ** 2))
        return jax.grad(lambda q: jnp.sum(slope * first(q)))(x)

    def both():
        lean = second(lambda q: attend(q, x, x, None, None, 0.0, "hash"))
        return lean, second(lambda q: plain(q, x, x, bias, None, None, 0.0))

    np.testing.assert_allclose(*jax.jit(both)(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_attention_keeps_no_float32_weights(target, capsys, monkeypatch):
    monkeypatch.setattr(attend_lib, "platform", lambda: target)
    module = Attention(2, 0.1, 0.1, jnp.bfloat16)
    x = jnp.ones((3, 24, 8), jnp.bfloat16)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), x, x, train=False))
    params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
    rngs = {"dropout": jax.random.key(1)}

    def mixed(x):
        return module.apply(params, x, x, train=True, rngs=rngs)

    print_saved_residuals(mixed, x)
    kept = capsys.readouterr().out
    assert ("bf16[3,2,24,24]" in kept) == (target == "tpu")
    assert "f32[3,2,24,24]" not in kept.replace("bf16", "")


@pytest.mark.parametrize(
    ("target", "passes", "tensor", "constrained"),
    [
        ("tpu", 2, 1, True),
        ("gpu", 2, 1, False),
        ("tpu", 1, 1, False),  # XLA would gather the batch
        ("tpu", 2, 2, False),  # and the heads
    ],
)
def test_scores_of_passes_have_a_layout_on_a_tpu(
    target, passes, tensor, constrained, monkeypatch
):
    monkeypatch.setattr(attend_lib, "platform", lambda: target)
    x = jnp.ones((passes, 3, 5, 2, 4))
    with jax.set_mesh(make_mesh(tensor=tensor)):
        program = jax.make_jaxpr(
            jax.vmap(lambda x: attend(x, x, x, None, None, 0.0, "hash"))
        )(x)
    assert ("layout_constraint" in str(program)) == constrained


def test_mlp_keeps_the_first_product_and_not_its_activation(capsys, monkeypatch):
    module = Mlp(32, 0.1, jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8), jnp.bfloat16)
    params = module.init(jax.random.key(1), x, train=False)
    rngs = {"dropout": jax.random.key(2)}

    def loss(params):
        return jnp.sum(module.apply(params, x, train=True, rngs=rngs) ** 2)

    remat_loss = jax.jit(loss)(params)
    print_saved_residuals(loss, params)
    kept = capsys.readouterr().out
    assert kept.count("[2,3,32]") + kept.count("[6,32]") == 1
    monkeypatch.setattr(layers.nn, "remat", lambda function: function)
    plain_loss = jax.jit(lambda params: loss(params))  # traced after the change
    np.testing.assert_array_equal(plain_loss(params), remat_loss)  # the same masks


def test_heads_split_in_the_product_equal_heads_split_after_it(monkeypatch):
    module = Attention(2)
    x = jax.random.normal(jax.random.key(0), (2, 3, 8))
    params = module.init(jax.random.key(1), x, x, train=False)
    expected = module.apply(params, x, x, train=False)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    text = str(jax.make_jaxpr(lambda x: module.apply(params, x, x, train=False))(x))
    assert "f32[6,8]" not in text  # no flattened rows
    np.testing.assert_allclose(
        module.apply(params, x, x, train=False), expected, rtol=1e-5, atol=1e-5
    )
