"""cuDNN's attention: the same values by XLA, shards, and where it applies."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax import config as config_lib
from rdrop_jax import flags
from rdrop_jax.cli.compile import abstract_step
from rdrop_jax.errors import InputError
from rdrop_jax.models import layers
from rdrop_jax.models.attend import fused_attend
from rdrop_jax.models.layers import Attention
from rdrop_jax.training.mesh import AXES, make_mesh


def plain(query, key, value, where):
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
    if where is not None:
        scores = jnp.where(where, scores, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), value)


def through_xla(*arrays):
    return fused_attend(*arrays, implementation="xla")


@pytest.mark.parametrize(("time", "source"), [(4, 4), (5, 5), (4, 7), (5, 4)])
@pytest.mark.parametrize("mask", ["none", "lengths", "causal"])
def test_values_and_gradients_equal_the_plain_formula(time, source, mask):
    query, slope = jax.random.normal(jax.random.key(0), (2, 3, time, 2, 8))
    key, value = jax.random.normal(jax.random.key(1), (2, 3, source, 2, 8))
    lengths = jnp.array([source, 2, 1])[:, None, None, None]
    where = {
        "none": None,
        "lengths": jnp.arange(source)[None, None, None] < lengths,
        "causal": jnp.tri(time, source, dtype=bool)[None, None],
    }[mask]

    def both(function):
        out, pull = jax.vjp(lambda *x: function(*x, where), query, key, value)
        return out, *pull(slope)

    found = jax.jit(both, static_argnums=0)(through_xla)
    for a, b in zip(found, both(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def kernels(monkeypatch):
    """Shapes of queries and mask in each call of the kernel, as a device sees them."""
    calls, kernel = [], jax.nn.dot_product_attention

    def called(query, key, value, mask, implementation):
        assert len(key) == len(value) == len(query)
        calls.append((query.shape, None if mask is None else mask.shape))
        return kernel(query, key, value, mask=mask, implementation=implementation)

    monkeypatch.setattr(jax.nn, "dot_product_attention", called)
    return calls


@pytest.mark.parametrize("shared", ["mask", "memory", "queries", "nothing"])
@pytest.mark.parametrize("rows", [1, 3])
def test_passes_are_rows_of_the_kernel(kernels, shared, rows):
    """cuDNN takes as many rows of a mask as of queries, or one."""
    arrays = jax.random.normal(jax.random.key(0), (3, 2, 3, 4, 2, 8))
    slope = jax.random.normal(jax.random.key(1), arrays.shape[1:])
    where = jnp.arange(4)[None] < jnp.array([4, 2, 1])[:rows, None]
    where = where[:, None, None]
    axes = {"memory": (0, None, None, None), "queries": (None, 0, 0, None)}
    axes = axes.get(shared, (0, 0, 0, None))
    inputs = [x if axis == 0 else x[0] for x, axis in zip(arrays, axes, strict=False)]
    if shared == "nothing":
        where, axes = jnp.stack([where, where.at[:, ..., 1].set(False)]), (0, 0, 0, 0)

    def both(function):
        passes = jax.vmap(function, axes)
        out, pull = jax.vjp(lambda *x: passes(*x, where), *inputs)
        return out, *pull(slope)

    for a, b in zip(both(through_xla), both(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    masks = {mask[0] for query, mask in kernels if query[0] == 6}
    assert masks == {1 if rows == 1 and shared != "nothing" else 6}


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize(("tensor", "rows"), [(1, 8), (2, 8), (1, 3)])
def test_each_of_eight_devices_attends_within_its_shard(kernels, tensor, rows, kind):
    shape = (3, 2, rows, 5, 2, 8)  # arrays, passes, rows, time, heads, width
    arrays = jax.random.normal(jax.random.key(0), shape)
    where = (jnp.arange(5)[None] < jnp.arange(1, rows + 1)[:, None])[:, None, None]
    types = (jax.sharding.AxisType[kind],) * 3
    mesh = jax.make_mesh((8 // tensor, 1, tensor), AXES, axis_types=types)
    over_rows = jax.P(None, None, ("data", "fsdp"))
    attention = jax.vmap(lambda q, k, v: through_xla(q, k, v, where))
    expected = jax.vmap(lambda q, k, v: plain(q, k, v, where))(*arrays)
    with jax.set_mesh(mesh):
        if rows == 8:
            arrays = jax.device_put(arrays, jax.NamedSharding(mesh, over_rows))
        found = jax.jit(lambda x: attention(*x))(arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    local = (2 * rows * tensor // 8, 6, 2 // tensor, 8)
    assert kernels[-1][0] == (local if rows == 8 else (2 * rows, 6, 2, 8))


@pytest.mark.parametrize(
    ("target", "dtype", "rate", "train", "fused"),
    [
        ("gpu", jnp.bfloat16, 0.0, True, True),
        ("gpu", jnp.bfloat16, 0.1, False, True),
        ("gpu", jnp.bfloat16, 0.1, True, False),  # dropout on the weights
        ("gpu", jnp.float32, 0.0, True, False),
        ("tpu", jnp.bfloat16, 0.0, True, False),
        ("cpu", jnp.bfloat16, 0.0, True, False),
    ],
)
def test_the_kernel_is_used_where_it_applies(
    target, dtype, rate, train, fused, monkeypatch
):
    monkeypatch.setattr(layers, "platform", lambda: target)
    calls = []
    monkeypatch.setattr(
        layers, "fused_attend", lambda q, k, v, where: calls.append(where) or q
    )
    x = jnp.ones((3, 5, 16), dtype)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

    def init(asked):
        module = Attention(2, rate, 0.1, dtype, fused=asked)
        return module.init(rngs, x, x, train=train)

    jax.eval_shape(lambda: init(False))
    assert not calls
    jax.eval_shape(lambda: init(True))
    assert bool(calls) == fused


@pytest.mark.parametrize("width", [12, 136])
def test_heads_that_the_kernel_does_not_take_are_named(width):
    x = jnp.ones((1, 4, 2, width))
    with pytest.raises(InputError, match=f"fused_attention: .*, got {width}. Change"):
        through_xla(x, x, x, None)


@pytest.mark.parametrize(
    "preset",
    [
        "vit.py",
        pytest.param("vit.py:folder_dinov2", marks=pytest.mark.slow),
        "glue.py",
        "nmt.py",
        "lm.py",
        "summarization.py",
    ],
)
def test_every_task_uses_the_kernel(preset, monkeypatch):
    fields = {
        "model.dtype": "bfloat16",
        "model.fused_attention": "true",
        "model.attention_dropout": "0",
        "model.dropout": "0.1",
    }
    config = flags.load(f"configs/{preset}", fields)
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    calls = []
    monkeypatch.setattr(
        layers, "fused_attend", lambda q, k, v, where: calls.append(where) or q
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    step, state, batch = abstract_step(config_lib.resolve(config, 100.0), mesh, "train")
    with jax.set_mesh(mesh):
        step.trace(state, batch)
    assert calls
