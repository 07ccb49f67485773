"""ViT and its layers: shapes, dropout sites, precision options."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax import dropout
from rdrop_jax.core.options import REMAT_POLICIES
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import DropPath
from rdrop_jax.models.layers import (
    Attention,
    Dense,
    Dropout,
    LayerDrop,
    Mlp,
    gelu,
)
from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import SIZES, ViT

KEY = jax.random.key(0)
TINY = Size(layers=2, width=16, heads=2, mlp_width=32)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 1)), jnp.float32)


def vit(**options):
    return ViT(**{"size": TINY, "num_classes": 5, "patch_size": 4} | options)


@functools.partial(jax.jit, static_argnums=0)
def init(module):
    params = module.init(jax.random.key(0), IMAGES, train=False)["params"]
    # The head starts at zero and would hide everything before it.
    noise = jax.random.normal(jax.random.key(1), params["head"]["kernel"].shape)
    return params | {"head": params["head"] | {"kernel": noise}}


def forward(module, params, key=None):
    if key is None:
        return module.apply({"params": params}, IMAGES, train=False)
    return module.apply({"params": params}, IMAGES, train=True, rngs={"dropout": key})


apply = jax.jit(forward, static_argnums=0)


@pytest.mark.parametrize(
    ("name", "millions"), [("Ti", 5.7), ("S", 22.1), ("B", 86.6), ("L", 304.3)]
)
def test_sizes_are_the_published_ones(name, millions):
    module = ViT(SIZES[name], num_classes=1000, patch_size=16)
    blank = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(
        lambda k, x: module.init(k, x, train=False), jax.random.key(0), blank
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == millions


def test_head_starts_at_zero():
    start = jax.jit(functools.partial(vit().init, train=False))
    params = start(jax.random.key(0), IMAGES)["params"]
    assert not np.any(apply(vit(), params))


def test_evaluation_is_deterministic_and_training_is_not():
    params = init(vit())
    np.testing.assert_array_equal(apply(vit(), params), apply(vit(), params))
    a, b = (apply(vit(), params, jax.random.key(i)) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, apply(vit(), params, jax.random.key(0)))


@pytest.mark.parametrize("site", ["dropout", "attention_dropout", "drop_path"])
def test_each_rate_alone_makes_passes_differ(site):
    module = vit(**{"dropout": 0.0, "attention_dropout": 0.0} | {site: 0.3})
    params = init(module)
    a, b = (apply(module, params, jax.random.key(i)) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    x = jnp.ones((4000, 2, 3))
    found = DropPath(0.25).apply({}, x, train=True, rngs={"dropout": KEY})
    rows = np.unique(found.reshape(4000, -1), axis=1)
    assert rows.shape == (4000, 1)
    np.testing.assert_allclose(np.unique(rows), [0, 1 / 0.75], rtol=1e-6)
    assert abs(float(found.mean()) - 1) < 0.03
    assert DropPath(0.25).apply({}, x, train=False) is x


def test_stochastic_depth_grows_linearly_to_the_last_block(monkeypatch):
    """As in timm: 0 in the first of n blocks, twice in each of the others."""
    rates = []

    def draw(module, x, *, train):
        rates.append(module.rate)
        return x

    monkeypatch.setattr(DropPath, "__call__", draw)
    module = vit(size=Size(4, 8, 2, 8), drop_path=0.3)
    jax.eval_shape(lambda: module.init(KEY, IMAGES, train=False))
    np.testing.assert_allclose(rates, np.repeat([0.0, 0.1, 0.2, 0.3], 2))


def test_rates_of_zero_need_no_key():
    module = vit(dropout=0.0, attention_dropout=0.0)
    params = init(module)
    run = jax.jit(functools.partial(module.apply, train=True))
    trained = run({"params": params}, IMAGES)
    np.testing.assert_array_equal(trained, apply(module, params))


@pytest.mark.parametrize(("attention_dropout", "per_block"), [(0.0, 2), (0.1, 4)])
def test_dropout_sites_are_those_of_the_paper(
    monkeypatch, attention_dropout, per_block
):
    """One after the embedding, two per MLP; two at attention where its rate is set."""
    drawn = []

    def counted(key, x, rate, *, masks):
        drawn.append(x.shape)
        return dropout(key, x, rate, masks=masks)

    module = vit(attention_dropout=attention_dropout)
    params = init(module)
    monkeypatch.setattr(layers, "dropout", counted)
    forward(module, params, jax.random.key(0))
    assert len(drawn) == 1 + per_block * TINY.layers
    assert all(shape[0] == len(IMAGES) for shape in drawn)  # no mask is shared


def test_remat_policies_keep_more_or_less():
    params, key = init(vit()), jax.random.key(2)

    def kept(remat):
        module = vit(remat=remat, dtype=jnp.bfloat16)
        pull = jax.eval_shape(
            lambda p: jax.vjp(lambda p: apply(module, p, key), p)[1], params
        )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))

    sizes = [kept(remat) for remat in (True, *REMAT_POLICIES, False)]
    assert sizes[0] == sizes[1]
    assert sizes[1] < sizes[2] < sizes[3] < sizes[4], sizes


@pytest.mark.slow
@pytest.mark.parametrize("policy", [True, "dots_with_no_batch_dims_saveable"])
def test_remat_changes_nothing_but_memory(policy):
    params = init(vit())
    key = jax.random.key(2)

    def loss(module):
        return jax.value_and_grad(lambda p: jnp.mean(apply(module, p, key) ** 2))(
            params
        )

    plain, remat = loss(vit()), loss(vit(remat=policy))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        plain,
        remat,
    )

    def program(remat):  # without dropout, which has a checkpoint of its own
        module = vit(dropout=0.0, remat=remat)
        grad = jax.grad(lambda p: jnp.sum(apply(module, p, key)))
        return str(jax.make_jaxpr(grad)(params))

    recomputes = re.compile("remat|checkpoint")
    assert recomputes.search(program(remat=policy))
    assert not recomputes.search(program(remat=False))


def test_bfloat16_activations_keep_float32_parameters():
    module = vit(dtype=jnp.bfloat16)
    params = init(module)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = apply(module, params)
    assert logits.dtype == jnp.float32  # of the head, which is not rounded
    assert np.any(logits != logits.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_allclose(logits, apply(vit(), params), atol=0.15, rtol=0.1)


def test_dropout_rate_scale_and_independence():
    x = jnp.ones((64, 16, 32))
    y = Dropout(0.25).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    kept = np.asarray(y) > 0
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)
    np.testing.assert_allclose(np.unique(np.asarray(y)), [0.0, 1 / 0.75], rtol=1e-6)
    rows = kept.reshape(64, -1)
    assert len({row.tobytes() for row in rows}) == 64  # a mask per example


def test_attention_dropout_draws_a_mask_per_example():
    module = Attention(heads=2, weights_dropout=0.5)
    same = jnp.broadcast_to(IMAGES[:1, :, :, 0], (4, 8, 8))
    params = module.init(jax.random.key(0), same, same, train=False)
    rngs = {"dropout": jax.random.key(1)}
    out = np.asarray(module.apply(params, same, same, train=True, rngs=rngs))
    assert all(np.abs(out[0] - out[i]).max() > 1e-3 for i in range(1, 4))


def test_attention_mask_hides_positions():
    module = Attention(heads=2)
    x = IMAGES[..., 0]
    params = module.init(jax.random.key(0), x, x, train=False)
    where = jnp.ones((3, 1, 8, 8), bool).at[:, :, :, 5:].set(False)
    masked = module.apply(params, x, x, where=where, train=False)
    cut = module.apply(params, x, x[:, :5], train=False)
    np.testing.assert_allclose(masked, cut, rtol=1e-5, atol=1e-6)


def test_bad_shapes_and_rates_are_named():
    with pytest.raises(
        ValueError, match="patch_size must divide the image: found 3, 8x8"
    ):
        init(vit(patch_size=3))
    with pytest.raises(ValueError, match="heads must divide the width: found 3, 16"):
        init(vit(size=TINY._replace(heads=3)))
    with pytest.raises(
        ValueError, match=r"dropout rate must be in \[0, 1\): found 1.0"
    ):
        Mlp(8, 1.0).init(jax.random.key(0), jnp.ones((1, 2, 4)), train=False)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_over_rows_is_dense(dtype):
    x = jax.random.normal(jax.random.key(0), (4, 5, 6))
    ours, theirs = Dense(7, dtype), nn.Dense(7, dtype=dtype)
    params = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)

    def run(module):
        def loss(p, x):
            return jnp.sum(module.apply(p, x).astype(jnp.float32) ** 2)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        run(ours),
        run(theirs),
    )


def test_gelu_and_its_slope_are_exact():
    x = jnp.linspace(-9.0, 9.0, 2001)
    with jax.enable_x64(True):
        x64 = jnp.asarray(np.asarray(x), jnp.float64)

        def exact(x):
            return jax.nn.gelu(x, approximate=False)

        slope = jax.vmap(jax.grad(exact))(x64)
        curve = jax.vmap(jax.grad(jax.grad(exact)))(x64)
        np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x64), slope, atol=1e-14)
        np.testing.assert_allclose(
            jax.vmap(jax.grad(jax.grad(gelu)))(x64), curve, atol=1e-12
        )
        np.testing.assert_allclose(gelu(x), exact(x64), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(x), slope, atol=1e-6)
    assert gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


class Twice(nn.Module):
    """Two sites of each kind."""

    @nn.compact
    def __call__(self, x, train):
        a, b = Dropout(0.5)(x, train=train), Dropout(0.5)(x, train=train)
        c = LayerDrop(0.5)(0.0 * x, x, train=train)
        d = LayerDrop(0.5)(0.0 * x, x, train=train)
        return a, b, c, d


def test_layers_draw_per_site_and_only_in_training():
    x = jnp.ones((64, 8))
    a, b, c, d = Twice().apply({}, x, True, rngs={"dropout": jax.random.key(0)})
    assert 0.3 < float(jnp.mean(a != b)) < 0.7
    assert 0.2 < float(jnp.mean(c[:, 0] != d[:, 0])) < 0.8
    assert np.all(np.asarray(c) == np.asarray(c)[:, :1])
    for out in Twice().apply({}, x, False):
        np.testing.assert_array_equal(out, x)
