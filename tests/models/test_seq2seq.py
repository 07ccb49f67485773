"""The encoder-decoder: parity with PyTorch, cache, dropout, precision, devices."""

import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.trees import nested
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from rdrop_jax import dropout
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.cache import reorder
from rdrop_jax.models.embeddings import sinusoids
from rdrop_jax.models.seq2seq import PARTITION_RULES, SIZES, Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size
from rdrop_jax.tasks.seq2seq.weight_names import to_ours
from rdrop_jax.training.mesh import batch_sharding, make_mesh, state_shardings

PARITY = Path(__file__).parents[1] / "parity" / "seq2seq"
TINY = Size(1, 1, 16, 2, 32)
BART = {
    "activation": "gelu",
    "positions": "learned",
    "position_offset": 2,
    "scale_embedding": False,
    "embedding_norm": True,
    "logits_bias": True,
}
PRE = {**BART, "pre_norm": True, "share": "none", "source_vocab_size": 30}
VOCAB = 20
RNG = np.random.default_rng(0)
SRC = jnp.asarray(RNG.integers(1, VOCAB, (4, 6)))
WHERE = jnp.arange(6)[None] < jnp.asarray([6, 3, 1, 0])[:, None]
INPUTS = jnp.asarray(RNG.integers(1, VOCAB, (4, 5)))
OFF = Rates(0.0, 0.0, 0.0, 0.0)


def build(**options):
    return Seq2Seq(**{"vocab_size": VOCAB, "size": TINY} | options)


@functools.partial(jax.jit, static_argnums=0)
def _init(module, key):
    return module.init(key, SRC, WHERE, INPUTS, train=False)["params"]


def init(module):
    return _init(module, jax.random.key(0))


def forward(module, params, key=None, **options):
    return module.apply(
        {"params": params},
        SRC,
        WHERE,
        INPUTS,
        train=key is not None,
        rngs={} if key is None else {"dropout": key},
        **options,
    )


apply = jax.jit(forward, static_argnums=0, static_argnames="return_hidden")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bart", BART),
        ("mbart", BART | {"pre_norm": True}),
        ("marian", {"positions": "marian", "logits_bias": True}),
    ],
)
def test_logits_are_those_of_pytorch(name, options):
    stored = np.load(PARITY / f"{name}.npz")
    tensors = {
        k.removeprefix("weights/"): stored[k] for k in stored if k.startswith("weights")
    }
    if name == "marian":  # Marian's positions are computed.
        tensors = {k: x for k, x in tensors.items() if "embed_positions" not in k}
    params = nested(to_ours(tensors))
    module = Seq2Seq(24, Size(2, 2, 8, 2, 12), max_length=12, **options)
    args = [jnp.asarray(stored[x]) for x in ("src", "where", "inputs")]
    key = jax.random.key(0)
    wanted = jax.eval_shape(lambda: module.init(key, *args, train=False))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, wanted)
    logits = jax.jit(lambda p: module.apply({"params": p}, *args, train=False))(params)
    assert np.abs(stored["logits"]).max() > 1
    np.testing.assert_allclose(logits, stored["logits"], rtol=1e-5, atol=1e-5)


def test_names_that_no_model_has_are_refused():
    with pytest.raises(ValueError, match=r"is named 'model\.encoder\.layers\.0\.gate"):
        to_ours({"model.encoder.layers.0.gate.weight": np.ones((2, 2))})
    # Copies of the shared table are passed over.
    params = to_ours({"model.shared.weight": np.ones(2), "lm_head.weight": None})
    assert list(params) == ["embedding"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("iwslt_de_en", 36.7), ("vaswani_wmt_en_de_big", 209.9)],
)
def test_sizes_are_fairseqs(name, millions):
    """31.6 and 176.4 million in the layers, the rest in one table."""
    vocab = {"iwslt_de_en": 10_000}.get(name, 32_768)
    module = Seq2Seq(vocab, SIZES["transformer"][name])
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), SRC, WHERE, INPUTS, train=False)
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == millions


def test_sinusoids_have_fairseqs_and_marians_frequencies():
    fairseq, marian = (sinusoids(50, 8, kind) for kind in ("fairseq", "marian"))
    for i in range(4):
        for at in (0, 1, 49):
            angle = at * 10000 ** (-i / 3)
            wanted = math.sin(angle), math.cos(angle)
            np.testing.assert_allclose(fairseq[at, [i, 4 + i]], wanted, atol=1e-6)
            angle = at * 10000 ** (-2 * i / 8)
            wanted = math.sin(angle), math.cos(angle)
            np.testing.assert_allclose(marian[at, [i, 4 + i]], wanted, atol=1e-6)


@pytest.mark.parametrize("options", [{}, PRE, {"share": "decoder"}], ids=str)
def test_steps_with_a_cache_are_the_whole(options):
    module = build(**options)
    params = init(module)
    wanted = apply(module, params)
    bound = module.bind({"params": params})

    @jax.jit
    def start():
        memory = bound.encode(SRC, WHERE)
        one = bound.init_cache(memory, WHERE, 8)
        return reorder(one, jnp.zeros((len(SRC), 3), jnp.int32))

    step = jax.jit(
        lambda ids, cache: module.apply(
            {"params": params}, ids, cache, method="decode_step"
        )
    )
    cache = start()
    for t in range(INPUTS.shape[1]):
        ids = jnp.stack([INPUTS[:, t], INPUTS[:, 0], INPUTS[:, t]], axis=1)
        logits, cache = step(ids, cache)
        for beam in (0, 2):
            np.testing.assert_allclose(logits[:, beam], wanted[:, t], atol=1e-5)
    assert int(cache.filled) == INPUTS.shape[1]


def test_padding_and_the_future_change_nothing():
    module = build()
    params = init(module)
    logits = apply(module, params)
    assert np.isfinite(logits).all()  # a row without any source, too

    def decode(src, where, inputs):
        return module.apply({"params": params}, src, where, inputs, train=False)

    cut = jax.jit(decode)(SRC[1:2, :3], WHERE[1:2, :3], INPUTS[1:2, :2])
    np.testing.assert_allclose(cut[0], logits[1, :2], atol=1e-5)
    other = SRC.at[1, 3:].set(7)
    changed = jax.jit(decode)(other, WHERE, INPUTS)
    np.testing.assert_allclose(changed[1], logits[1], atol=1e-6)


def test_hidden_states_lead_to_the_logits():
    module = build(logits_bias=True)
    params = init(module) | {"logits_bias": jnp.arange(float(VOCAB))}
    hidden = apply(module, params, return_hidden=True)
    assert hidden.shape == (4, 5, 16)
    wanted = hidden @ params["embedding"].T + params["logits_bias"][None, None]
    np.testing.assert_allclose(apply(module, params), wanted, atol=1e-5)


def test_tables_are_shared_as_asked():
    names = {"embedding", "source_embedding", "output"}
    for share, wanted in (
        ("all", {"embedding"}),
        ("decoder", {"embedding", "source_embedding"}),
        ("none", names),
    ):
        assert names & set(init(build(share=share))) == wanted


@pytest.mark.parametrize("site", Rates._fields)
def test_each_rate_alone_makes_passes_differ(site):
    module = build(rates=OFF._replace(**{site: 0.3}))
    params = init(module)
    a, b = (apply(module, params, jax.random.key(i)) for i in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, apply(module, params, jax.random.key(0)))
    still = apply(module, params)
    np.testing.assert_array_equal(still, apply(build(rates=OFF), params))


@pytest.mark.parametrize(
    ("rates", "sites"),
    [
        (Rates(0.1, 0.0, 0.0), 2 + 2 + 3),  # embeddings, sublayers
        (Rates(0.0, 0.1, 0.0), 1 + 2),
        (Rates(0.0, 0.0, 0.1), 1 + 1),
    ],
)
def test_dropout_sites_are_fairseqs(monkeypatch, rates, sites):
    drawn = []

    def counted(key, x, rate, *, masks):
        drawn.append(x.shape)
        return dropout(key, x, rate, masks=masks)

    module = build(rates=rates)
    params = init(module)
    monkeypatch.setattr(layers, "dropout", counted)
    jax.eval_shape(lambda p: forward(module, p, jax.random.key(0)), params)
    assert len(drawn) == sites
    assert all(shape[0] == len(SRC) for shape in drawn)


def test_gradients_are_those_of_differences():
    module = build(size=Size(1, 1, 4, 2, 6), rates=OFF)
    params = init(module)
    weights = jnp.asarray(RNG.normal(size=(4, 5, VOCAB)), jnp.float32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        w = jnp.asarray(np.asarray(weights), jnp.float64)
        module = module.clone(dtype=jnp.float64, activation="silu")  # no kinks

        def loss(p):
            logits = module.apply({"params": p}, SRC, WHERE, INPUTS, train=False)
            return jnp.sum(jnp.tanh(logits) * w)

        check_grads(
            jax.jit(loss), (params,), 1, ["rev"], atol=1e-2, rtol=1e-2, eps=1e-3
        )


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
    params, key = init(build()), jax.random.key(2)

    def grads(module):
        return jax.value_and_grad(lambda p: jnp.mean(apply(module, p, key) ** 2))(
            params
        )

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        grads(build()),
        grads(build(remat=True)),
    )

    def program(remat):  # without dropout, which has a checkpoint of its own
        module = build(rates=OFF, remat=remat)
        grad = jax.grad(lambda p: jnp.sum(forward(module, p, key)))
        return re.search("remat|checkpoint", str(jax.make_jaxpr(grad)(params)))

    assert program(remat=True)
    assert not program(remat=False)


def test_bfloat16_activations_keep_float32_parameters_and_logits():
    module = build(dtype=jnp.bfloat16, pre_norm=True)
    params = init(module)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    logits = apply(module, params)
    assert logits.dtype == jnp.float32
    wanted = apply(build(pre_norm=True), params)
    np.testing.assert_allclose(logits, wanted, atol=0.1)
    assert np.abs(logits - wanted).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)])
def test_many_devices_equal_one(shape):
    """Width 256: the matrices are large enough to be cut over fsdp."""
    module = build(size=Size(1, 1, 256, 2, 256), vocab_size=256, remat=True)
    src, inputs, where = (jnp.tile(x, (2, 1)) for x in (SRC, INPUTS, WHERE))
    key = jax.random.key(5)

    def run(params, src, where, inputs):
        def loss(p):
            rngs = {"dropout": key}
            logits = module.apply(
                {"params": p}, src, where, inputs, train=True, rngs=rngs
            )
            return jnp.mean(jnp.square(logits))

        return jax.value_and_grad(loss)(params)

    params = init(module)
    wanted = jax.jit(run)(params, src, where, inputs)
    mesh = make_mesh(*shape)
    places = state_shardings(mesh, params, PARTITION_RULES)
    rows = batch_sharding(mesh)
    found = jax.jit(run, in_shardings=(places, rows, rows, rows))(
        jax.device_put(params, places), src, where, inputs
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=1e-5 * max(float(np.abs(b).max()), 1e-3)
        ),
        found,
        wanted,
    )
    if shape == (2, 2, 2):
        cross = places["decoder"]["block_0"]["cross"]
        assert cross["query"]["kernel"].spec == PartitionSpec("fsdp", "tensor")
        assert places["embedding"].spec == PartitionSpec("tensor", "fsdp")


def test_bad_options_are_named():
    for options, message in (
        ({"share": "some"}, "share must be one of .*: found 'some'"),
        ({"positions": "rotary"}, "positions must be one of .*: found 'rotary'"),
        ({"max_length": 5}, "tokens: expected at most 5 positions, found 6"),
        ({"size": Size(1, 1, 9, 3, 8)}, "width must be even for sinusoids: found 9"),
    ):
        with pytest.raises(ValueError, match=message):
            init(build(**options))
