"""One number in Linen, NNX, Equinox and plain JAX; adapters and their guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy

from rdrop_jax import (
    check_stochastic,
    forward_passes,
    linen_forward,
    nnx_forward,
    rdrop_loss,
)

eqx = pytest.importorskip("equinox", reason="equinox is in the extra dev")
nn = pytest.importorskip("flax.linen", reason="flax is in the extra train")
nnx = pytest.importorskip("flax.nnx", reason="flax is in the extra train")
KEY = jax.random.key(5)


def drop(h, key):
    return jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h / 0.8, 0.0)


class LinenMlp(nn.Module):
    @nn.compact
    def __call__(self, x, key):
        h = jnp.tanh(nn.Dense(16, use_bias=False, name="in")(x))
        return nn.Dense(3, use_bias=False, name="out")(drop(h, key))


class NnxMlp(nnx.Module):
    def __init__(self, params):
        self.first, self.second = nnx.Param(params["in"]), nnx.Param(params["out"])

    def __call__(self, x, key):
        return drop(jnp.tanh(x @ self.first), key) @ self.second


class EquinoxMlp(eqx.Module):
    first: jax.Array
    second: jax.Array

    def __call__(self, x, key):
        return drop(jnp.tanh(x @ self.first), key) @ self.second


def linen(params, x, key):
    kernels = {name: {"kernel": value} for name, value in params.items()}
    return LinenMlp().apply({"params": kernels}, x, key)


WAYS = {
    "plain": lambda params, x, key: toy.forward(params, {"x": x}, key),
    "linen": linen,
    "nnx": lambda params, x, key: NnxMlp(params)(x, key),
    "equinox": lambda params, x, key: EquinoxMlp(params["in"], params["out"])(x, key),
}


def test_one_number_in_every_framework():
    params, batch = toy.params(), toy.batch()

    def loss(apply):
        def run(params):
            logits = forward_passes(apply, params, batch["x"], KEY)
            return rdrop_loss(logits, batch["label"], alpha=2.0)[0]

        return jax.value_and_grad(run)(params)

    value, grads = loss(WAYS["plain"])
    for name, apply in WAYS.items():
        other, other_grads = loss(apply)
        np.testing.assert_allclose(other, value, rtol=1e-6, err_msg=name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            other_grads,
            grads,
        )


class LinenDropout(nn.Module):
    rate: float = 0.5
    stream: str = "dropout"

    @nn.compact
    def __call__(self, x, *, deterministic):
        h = nn.Dense(8)(x)
        return nn.Dropout(self.rate, rng_collection=self.stream)(
            h, deterministic=deterministic
        )


def linen_pair(module, **options):
    params = module.init(jax.random.key(0), jnp.ones((1, 5)), deterministic=True)
    forward = linen_forward(
        module,
        "x",
        train={"deterministic": False},
        evaluate={"deterministic": True},
        **options,
    )
    return forward, params


def test_linen_forward():
    forward, variables = linen_pair(LinenDropout())
    params, batch = variables["params"], toy.batch()
    check_stochastic(forward, params, batch, KEY)
    still = forward(params, batch, None)
    np.testing.assert_array_equal(still, forward(params, batch, None))
    off, off_variables = linen_pair(LinenDropout(rate=0.0))
    with pytest.raises(ValueError, match="two dropout keys"):
        check_stochastic(off, off_variables["params"], batch, KEY)


def test_linen_forward_takes_another_stream_and_several_inputs():
    forward, variables = linen_pair(LinenDropout(stream="noise"), rng="noise")
    check_stochastic(forward, variables["params"], toy.batch(), KEY)
    several = linen_forward(
        LinenDropout(),
        lambda batch: (batch["x"] * 2,),
        train={"deterministic": False},
        evaluate={"deterministic": True},
    )
    assert several(variables["params"], toy.batch(), None).shape == (8, 8)


class TwoStreams(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        if deterministic:
            return x
        keys = [self.make_rng(name) for name in ("dropout", "droppath")]
        return jnp.stack([jax.random.uniform(key, x.shape) for key in keys])


def test_linen_forward_feeds_several_streams():
    forward = linen_forward(
        TwoStreams(),
        "x",
        train={"deterministic": False},
        evaluate={"deterministic": True},
        rng=("dropout", "droppath"),
    )
    one, other = forward({}, toy.batch(), KEY)
    assert not np.allclose(one, other)
    assert not np.allclose(one, forward({}, toy.batch(), jax.random.key(8))[0])


def test_linen_forward_refuses_collections():
    forward, variables = linen_pair(LinenDropout())
    with pytest.raises(ValueError, match=r"\['params'\]: give variables\['params'\]"):
        forward(variables, toy.batch(), KEY)


class NnxDropout(nnx.Module):
    def __init__(self, rngs, *, owned=False, norm=False):
        self.dense = nnx.Linear(5, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs if owned else None)
        self.norm = nnx.BatchNorm(8, rngs=rngs) if norm else None

    def __call__(self, x, *, rngs=None):
        return self.dropout(self.dense(x), rngs=rngs)


class NnxOwned(NnxDropout):
    """As in flax's guides: dropout holds a stream, and the call takes none."""

    def __init__(self, rngs):
        super().__init__(rngs, owned=True)
        self.again = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.dense(x)) + 10 * self.again(jnp.ones((len(x), 8)))


@pytest.mark.parametrize("kind", [NnxDropout, NnxOwned])
def test_nnx_forward(kind):
    forward, params = nnx_forward(kind(nnx.Rngs(0)), "x")
    check_stochastic(forward, params, toy.batch(), KEY)
    outputs = [
        forward_passes(forward, params, toy.batch(), KEY, how=how)
        for how in ("unroll", "vmap")
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-6)
    np.testing.assert_array_equal(
        forward(params, toy.batch(), None), forward(params, toy.batch(), None)
    )


def test_nnx_streams_of_a_module_are_seeded_apart_and_left_alone():
    model = NnxOwned(nnx.Rngs(0))
    before = model.dropout.rngs.count[...]
    forward, params = nnx_forward(model, "x")
    x = {"x": jnp.ones((64, 5))}
    first, second = (forward(params, x, KEY) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.dropout.rngs.count[...] == before
    # What the second dropout keeps says nothing of what the first keeps.
    kept = first >= 15
    again = first - jnp.where(kept, 20.0, 0.0) != 0
    assert 0.2 < np.mean(kept == again) < 0.8


def test_nnx_model_gets_trained_parameters_back():
    model = NnxOwned(nnx.Rngs(0))
    forward, params = nnx_forward(model, "x")
    params = jax.tree.map(lambda x: x + 1, params)
    nnx.update(model, params)
    model.eval()
    np.testing.assert_array_equal(
        model(toy.batch()["x"]), forward(params, toy.batch(), None)
    )


def test_nnx_batch_statistics_are_refused():
    with pytest.raises(ValueError, match="norm/mean"):
        nnx_forward(NnxDropout(nnx.Rngs(0), norm=True), "x")


def test_one_pass_is_too_few():
    forward, variables = linen_pair(LinenDropout())
    with pytest.raises(ValueError, match="two or more passes: found 1"):
        check_stochastic([forward], variables["params"], toy.batch(), KEY)
