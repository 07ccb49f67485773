"""Language models: causality, caches, counts, and what they say of all words."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chunk_sizes import set_sizes

from rdrop_jax.core.kernels.adaptive_softmax import adaptive_rdrop_loss
from rdrop_jax.core.objective import rdrop_loss
from rdrop_jax.core.passes import forward_passes
from rdrop_jax.models.adaptive import AdaptiveDecoder, clusters
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.decoder import SIZES, Decoder
from rdrop_jax.models.embeddings import sinusoids
from rdrop_jax.models.outputs import AdaptiveOutput, log_probs, nll, vocab_size
from rdrop_jax.models.sizes import Size

SIZE = Size(2, 16, 2, 24)
WORDS = 23
IDS = jnp.asarray(np.random.default_rng(0).integers(0, WORDS, (2, 7)))
RATES = Rates(0.2, 0.1, 0.1)
PLAIN = Decoder(WORDS, SIZE, RATES, max_length=12)
ADAPTIVE = AdaptiveDecoder(WORDS, (5, 11), 2, SIZE, RATES, 0.2, max_length=12)
MODELS = {"plain": PLAIN, "adaptive": ADAPTIVE}


def params_of(module):
    init = jax.jit(lambda key: module.init(key, IDS, train=False)["params"])
    params = init(jax.random.key(1))
    # Biases and norms that are not what they start from.
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    moved = [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, moved)


PARAMS = {name: params_of(module) for name, module in MODELS.items()}


@functools.partial(jax.jit, static_argnums=0)
def run(name, ids):
    return MODELS[name].apply({"params": PARAMS[name]}, ids, train=False)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def reference_block(x, p, activation):
    """One row [time, width] through a pre-norm block, position by position."""
    h = norm(x, p["attention_norm"])
    a, heads = p["attention"], SIZE.heads
    q, k, v = (dense(h, a[n]) for n in ("query", "key", "value"))
    width = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for t in range(len(x)):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = k[: t + 1, part] @ q[t, part] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            mixed[t, part] = weights @ v[: t + 1, part] / weights.sum()
    x = x + dense(mixed, a["attention_out"])
    h = dense(norm(x, p["mlp_norm"]), p["mlp"]["mlp_in"])
    return x + dense(activation(h), p["mlp"]["mlp_out"])


def gelu(x):
    erf = np.vectorize(math.erf)
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def test_decoder_against_numpy():
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS["plain"])
    x = p["embedding"][np.asarray(IDS[0])] * SIZE.width**0.5
    x = x + sinusoids(12, SIZE.width, "fairseq")[: len(x)]
    for i in range(SIZE.layers):
        x = reference_block(x, p["stack"][f"block_{i}"], gelu)
    x = norm(x, p["stack"]["norm"])
    found = run("plain", IDS)
    np.testing.assert_allclose(found.hidden[0], x, atol=2e-5)
    z = x @ p["embedding"].T
    expected = z - np.log(np.exp(z).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_probs(found)[0], expected, atol=1e-4)


def test_adaptive_against_numpy():
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS["adaptive"])
    parts = clusters((5, 11), WORDS, SIZE.width, 2)
    assert parts == [(0, 5, 16), (5, 6, 8), (11, 12, 4)]
    rows = []
    for word in np.asarray(IDS[0]):
        i = 0 if word < 5 else 1 if word < 11 else 2
        rows.append(p[f"embedding_{i}"][word - parts[i][0]] @ p[f"projection_{i}"])
    x = np.stack(rows) * SIZE.width**0.5
    x = x + sinusoids(12, SIZE.width, "fairseq")[: len(x)]
    for i in range(SIZE.layers):
        block = p["stack"][f"block_{i}"]
        x = reference_block(x, block, lambda h: np.maximum(h, 0))

    def softmax(z):
        return np.exp(z) / np.exp(z).sum(-1, keepdims=True)

    head = softmax(x @ np.concatenate([p["embedding_0"], p["classes"]]).T)
    tails = [
        head[:, 4 + i, None]
        * softmax(x @ p[f"projection_{i}"].T @ p[f"embedding_{i}"].T)
        for i in (1, 2)
    ]
    expected = np.concatenate([head[:, :5], *tails], axis=1)
    found = jnp.exp(log_probs(run("adaptive", IDS)))
    np.testing.assert_allclose(found[0], expected, atol=2e-6)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_no_position_looks_ahead(name):
    before = log_probs(run(name, IDS))
    after = log_probs(run(name, IDS.at[:, 4].set((IDS[:, 4] + 1) % WORDS)))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (jnp.abs(before - after).max(-1)[:, 4:] > 1e-4).all()


@pytest.mark.parametrize("name", MODELS)
def test_steps_with_a_cache_equal_one_call(name):
    module, variables = MODELS[name], {"params": PARAMS[name]}
    step = jax.jit(lambda ids, c: module.apply(variables, ids, c, method="decode_step"))
    whole = log_probs(run(name, IDS))
    cache = module.apply(variables, 2, 9, method="init_cache")
    for t in range(IDS.shape[1]):
        output, cache = step(IDS[:, t : t + 1], cache)
        np.testing.assert_allclose(log_probs(output)[:, 0], whole[:, t], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_nll_in_chunks(name, monkeypatch):
    output, labels = run(name, IDS), (IDS * 3) % WORDS
    assert vocab_size(output) == WORDS
    found = -jnp.take_along_axis(log_probs(output), labels[..., None], -1)[..., 0]
    for limit in (2**23, 2 * WORDS * 3, 1):
        set_sizes(monkeypatch, log_probs=limit)
        np.testing.assert_allclose(nll(output, labels), found, rtol=1e-6)


@pytest.mark.slow
def test_adaptive_loss_equals_that_of_all_words():
    labels = (IDS * 3) % WORDS
    module = ADAPTIVE.clone(size=SIZE._replace(layers=1))

    def outputs(params, how):
        def forward(params, batch, key):
            rngs = {"dropout": key}
            return module.apply({"params": params}, batch, train=True, rngs=rngs)

        axes = AdaptiveOutput(0, None)
        key = jax.random.key(4)
        return forward_passes(forward, params, IDS, key, out_axes=axes, how=how)

    def ours(params):
        found = outputs(params, "unroll")
        return adaptive_rdrop_loss(*found, labels, alpha=0.7)[0]

    def plain(params):
        return rdrop_loss(log_probs(outputs(params, "vmap")), labels, alpha=0.7)[0]

    loss, grads = jax.jit(jax.value_and_grad(ours))(PARAMS["adaptive"])
    expected, wanted = jax.jit(jax.value_and_grad(plain))(PARAMS["adaptive"])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for found, g in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(found, g, atol=2e-5)


def count(module):
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 2), int), train=False)
    )
    return sum(x.size for x in jax.tree.leaves(shapes))


def test_parameters_of_the_paper_s_models():
    def blocks(layers, width, mlp):
        attention = 4 * (width * width + width)
        dense = width * mlp + mlp + mlp * width + width
        norms = 2 * (width + width)
        return layers * (attention + dense + norms)

    words = 267_735
    gpt = Decoder(words, SIZES["gpt"])
    by_hand = words * 768 + blocks(12, 768, 3072) + 2 * 768
    assert count(gpt) == by_hand == 290_676_480

    tables = 20_000 * 1024 + 40_000 * 256 + 207_735 * 64
    projections = 1024 * 1024 + 256 * 1024 + 64 * 1024
    by_hand = tables + projections + 2 * 1024 + blocks(16, 1024, 4096)
    assert count(AdaptiveDecoder(words)) == by_hand == 246_932_928


@pytest.mark.parametrize("cutoffs", [(11, 5), (5, 5), (0,), (5, WORDS), (5, 30)])
def test_cutoffs_that_are_out_of_order(cutoffs):
    with pytest.raises(ValueError, match=r"cutoffs must increase, .* size 23"):
        clusters(cutoffs, WORDS, 16, 2)


def test_clusters_that_have_no_width():
    with pytest.raises(ValueError, match=r"factor must be .* \[16, 1, 0\]"):
        clusters((5, 11), WORDS, 16, 16)


@pytest.mark.parametrize("name", MODELS)
def test_too_long(name):
    with pytest.raises(
        ValueError, match="tokens: expected at most 12 positions, found 13"
    ):
        run(name, jnp.zeros((1, 13), int))


def test_remat_changes_nothing():
    module = PLAIN.clone(size=SIZE._replace(layers=1))

    def grads(module):
        def loss(params):
            rngs = {"dropout": jax.random.key(3)}
            found = module.apply({"params": params}, IDS, train=True, rngs=rngs)
            return nll(found, IDS).sum()

        return jax.jit(jax.grad(loss))(PARAMS["plain"])

    again = grads(module.clone(remat=True))
    for a, b in zip(
        jax.tree.leaves(grads(module)), jax.tree.leaves(again), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)
