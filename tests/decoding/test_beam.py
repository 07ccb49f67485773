"""Beam search against enumeration; neighbours, padding, growth and ties."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax.decoding import batched_search
from rdrop_jax.decoding.batched_search import Shapes, choose_shapes, make_search
from rdrop_jax.decoding.beam_search import beam_search
from rdrop_jax.decoding.search_options import SearchOptions
from rdrop_jax.decoding.top_k import top_k
from rdrop_jax.errors import InputError
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize as Size

PAD, BOS, EOS = 0, 1, 2
VOCAB, LENGTH = 5, 5  # four tokens and EOS
ALL = SearchOptions(BOS, EOS, PAD, beam=64, n_best=8, early_stop=False)


def chain(seed, batch=3, scale=2.0, vocab=VOCAB):
    """Logits after each token at each step: a model that can be enumerated."""
    shape = (batch, LENGTH, vocab, vocab)
    return np.random.default_rng(seed).normal(size=shape, scale=scale)


def after(ids, cache):
    table = cache.shared[:, cache.filled]
    logits = jnp.take_along_axis(table, ids[..., None], axis=1)
    return logits, cache._replace(filled=cache.filled + 1)


@functools.partial(jax.jit, static_argnums=1)
def _search(table, options, high, low):
    return beam_search(
        after,
        Cache((), table, jnp.int32(0)),
        options,
        max_length=high,
        min_length=low,
        length=LENGTH,
    )


def search(table, options, high=4, low=0):
    batch = len(table)
    high, low = (jnp.broadcast_to(jnp.asarray(x), (batch,)) for x in (high, low))
    found = _search(jnp.asarray(table, jnp.float32), options, high, low)
    return jax.tree.map(np.asarray, found)


def log_probs(table):
    return table - np.log(np.exp(table).sum(-1, keepdims=True))


def divisor(length, options):
    return length**options.length_penalty


def enumerate_all(table, options, high=4, low=0):
    """Every hypothesis of one example with its score, best first."""
    table = log_probs(table)
    tokens = [i for i in range(len(table[0])) if i not in (PAD, BOS, EOS)]
    tokens = [i for i in tokens if i not in options.forbid]
    found = []
    for n in range(low, high + 1):
        for body in itertools.product(tokens, repeat=n):
            score, last = 0.0, BOS
            for step, token in enumerate((*body, EOS)):
                score, last = score + table[step, last, token], token
            found.append((score / divisor(n + 1, options), [*body, EOS]))
    return sorted(found, reverse=True)


def fairseq(table, options, high=4):
    """The rules of fairseq's generator, one example, plainly; to the limit if asked."""
    table, beam = log_probs(table), options.beam
    live, ended = [(0.0, [])], []
    for step in range(high + 1):
        found = []
        for score, tokens in live:
            row = table[step, tokens[-1] if tokens else BOS]
            for token in range(len(row)):
                fits = token == EOS if step == high else token not in (PAD, BOS)
                if fits:
                    found.append((score + row[token], [*tokens, token]))
        found.sort(key=lambda item: -item[0])
        found = found[: 2 * beam]
        for score, tokens in found[:beam]:
            room = len(ended) < beam or not options.early_stop
            if tokens[-1] == EOS and room:
                ended.append((score / divisor(step + 1, options), tokens))
        if len(ended) == beam and options.early_stop:
            break
        live = [item for item in found if item[1][-1] != EOS][:beam]
    return sorted(ended, key=lambda item: -item[0])


def assert_found(found, row, wanted):
    for k, (score, tokens) in enumerate(wanted):
        assert found.lengths[row, k] == len(tokens)
        assert found.tokens[row, k].tolist() == tokens + [PAD] * (LENGTH - len(tokens))
        np.testing.assert_allclose(found.scores[row, k], score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0, 0.6])
def test_a_wide_beam_finds_what_enumeration_finds(length_penalty):
    options = ALL._replace(length_penalty=length_penalty)
    table = chain(0)
    found = search(table, options, high=[4, 2, 4], low=[0, 0, 2])
    for row, (high, low) in enumerate([(4, 0), (2, 0), (4, 2)]):
        wanted = enumerate_all(table[row], options, high, low)
        assert_found(found, row, wanted[: options.n_best])


def test_fewer_hypotheses_than_asked_for():
    found = search(chain(1), ALL, high=1)
    assert (found.lengths > 0).sum(axis=1).tolist() == [3, 3, 3]  # EOS, 3 EOS, 4 EOS
    assert np.all(found.scores[:, 3:] == -np.inf)
    assert np.all(found.tokens[:, 3:] == PAD)


@pytest.mark.parametrize("beam", [1, 2, 3])
@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_narrow_beams_follow_fairseq(beam, penalty):
    """All that ended where fairseq breaks off in the middle of a step: the best."""
    options = SearchOptions(BOS, EOS, PAD, beam, 1, penalty)
    table = chain(2, batch=64, scale=1.0)
    found = search(table, options)
    for row in range(len(table)):
        assert_found(found, row, fairseq(table[row], options)[:1])


def test_early_stop_and_going_on_differ_as_they_should():
    table = chain(3, batch=64, scale=1.0)
    early = SearchOptions(BOS, EOS, PAD, 2, 1)
    late = early._replace(early_stop=False)
    first, best = search(table, early), search(table, late)
    assert np.all(best.scores >= first.scores - 1e-6)
    assert np.any(best.scores > first.scores + 1e-3)


@pytest.mark.parametrize("penalty", [2.0, 1.0, 0.0, -1.0])
def test_the_bound_stops_no_winner(penalty):
    """Going on to the limit changes nothing of what the bound stopped."""
    options = SearchOptions(BOS, EOS, PAD, 3, 2, penalty, early_stop=False)
    table = chain(4, batch=256, scale=4.0)
    found = search(table, options)
    for row in range(len(table)):
        assert_found(found, row, fairseq(table[row], options)[:2])


def test_greedy_is_a_beam_of_one():
    table = chain(5, batch=16)
    found = search(table, SearchOptions(BOS, EOS, PAD, beam=1))
    for row in range(len(table)):
        last, tokens = BOS, []
        for step in range(LENGTH):
            logits = table[row, step, last].copy()
            logits[[PAD, BOS]] = -np.inf
            last = int(logits.argmax()) if step < 4 else EOS
            tokens.append(last)
            if last == EOS:
                break
        assert found.tokens[row, 0, : len(tokens)].tolist() == tokens
        assert found.lengths[row, 0] == len(tokens)


def test_ties_go_to_what_ended_then_to_the_lower_beam_and_id():
    table = np.zeros((1, LENGTH, VOCAB, VOCAB))
    options = SearchOptions(BOS, EOS, PAD, beam=4, n_best=4, length_penalty=0.0)
    found = search(table, options)
    # Probability 1/5 a token: the shortest first, among equals those of lower ids.
    wanted = [[EOS], [3, EOS], [4, EOS], [3, 3, EOS]]
    lengths = found.lengths[0]
    assert [
        t[:n].tolist() for t, n in zip(found.tokens[0], lengths, strict=True)
    ] == wanted


def test_forbidden_ids():
    table = chain(6)
    options = ALL._replace(forbid=(3,))
    found = search(table, options)
    assert_found(found, 0, enumerate_all(table[0], options)[:5])


def test_neighbours_change_nothing():
    table = chain(7, batch=8)
    options = SearchOptions(BOS, EOS, PAD, 3, 3)
    whole = search(table, options, high=[4, 1, 2, 3, 4, 0, 4, 4])
    for row, high in ((0, 4), (3, 3), (5, 0)):
        alone = search(table[row : row + 1], options, high=high)
        np.testing.assert_array_equal(alone.tokens[0], whole.tokens[row])
        np.testing.assert_allclose(alone.scores[0], whole.scores[row], rtol=1e-6)


def test_top_k_is_exact_and_keeps_the_order_of_ties():
    rng = np.random.default_rng(0)
    for size in (300, 2048, 5001):
        x = np.round(rng.normal(size=(6, 2, size)) * 8).astype(np.float32)
        for without in ((), (0, 1, 2), (3, size - 1)):
            hidden = x.copy()
            hidden[..., list(without)] = -np.inf
            values, ids = jax.jit(top_k, static_argnums=(1, 2))(x, 4, without)
            wanted, places = jax.lax.top_k(hidden, 4)
            np.testing.assert_array_equal(values, wanted)
            np.testing.assert_array_equal(ids, places)


def test_impossible_options_are_named():
    with pytest.raises(ValueError, match="n_best must be between 1 and beam: found 6"):
        search(chain(0), SearchOptions(BOS, EOS, PAD, n_best=6))


# Over a real model: nothing that saves time changes a result.

MODEL = Seq2Seq(30, Size(1, 1, 16, 2, 16), share="none", max_length=64)


@pytest.fixture(scope="module")
def model():
    """Random weights, whose hypotheses end at different lengths."""
    src = jnp.ones((1, 2), int)
    params = jax.jit(
        lambda: MODEL.init(jax.random.key(3), src, src > 0, src, train=False)
    )()["params"]
    return params | {"output": params["output"] * 3}


def start(params, src, where, length):
    bound = MODEL.bind({"params": params})
    return bound.init_cache(bound.encode(src, where), where, length)


def step(params, ids, cache):
    return MODEL.apply({"params": params}, ids, cache, method="decode_step")


OPTIONS = SearchOptions(BOS, EOS, PAD, beam=3, n_best=2)
RNG = np.random.default_rng(1)
SOURCES = [RNG.integers(3, 30, n).tolist() for n in (2, 9, 1, 4, 7, 3, 5)]
LIMITS = [5, 20, 11, 3, 17, 9, 14]


@pytest.fixture(scope="module")
def roomy(model):
    """One batch, one shape, room for all: nothing moves."""
    plain = Shapes(rows=(8,), sources=(16,), cache_lengths=(32,))
    return make_search(start, step, OPTIONS, plain)(model, SOURCES, LIMITS)


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


def test_hypotheses_end_at_different_lengths(roomy):
    lengths = [len(x.tokens[0]) for x in roomy]
    assert len(set(lengths)) > 3
    assert all(n <= limit for n, limit in zip(lengths, LIMITS, strict=True))
    assert all(x.scores == sorted(x.scores, reverse=True) for x in roomy)


def test_scores_are_those_of_the_whole_model(model, roomy):
    """Every hypothesis scored anew, all positions at once."""

    @jax.jit
    def whole(src, ids):
        return MODEL.apply({"params": model}, src, src > 0, ids, train=False)

    def padded(row):
        return jnp.asarray([row + [PAD] * (32 - len(row))])

    for source, found in zip(SOURCES[:3], roomy, strict=False):
        for tokens, score in zip(found.tokens, found.scores, strict=True):
            logits = whole(padded(source), padded([BOS, *tokens]))
            row = log_probs(np.asarray(logits[0], np.float64))
            total = row[np.arange(len(tokens) + 1), [*tokens, EOS]].sum()
            np.testing.assert_allclose(score, total / (len(tokens) + 1), rtol=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [
        Shapes(rows=(8,), sources=(16,), cache_lengths=(4, 8, 32)),
        Shapes(rows=(2, 4), sources=(16,), cache_lengths=(32,)),
    ],
    ids=["growing", "shrinking"],
)
def test_growing_shrinking_and_batches_change_nothing(model, roomy, shapes):
    search_all = make_search(start, step, OPTIONS, shapes)
    assert_same(search_all(model, SOURCES, LIMITS), roomy)


def test_cached_is_uncached(model, roomy):
    """The decoder run on the whole prefix in every step, tokens in the cache."""

    def begin(params, src, where, length):
        memory = MODEL.apply({"params": params}, src, where, method="encode")
        prefix = jnp.zeros((len(src), 1, length, 1), int)
        return Cache(prefix, (memory, where), jnp.int32(0))

    def again(params, ids, cache):
        at, (memory, where) = cache.filled, cache.shared
        prefix = jax.lax.dynamic_update_slice_in_dim(
            cache.beams, ids[..., None, None], at, axis=2
        )
        batch, beam, length = prefix.shape[:3]
        bound = MODEL.bind({"params": params})
        hidden = bound.decode_hidden(
            jnp.repeat(memory, beam, axis=0),
            jnp.repeat(where, beam, axis=0),
            prefix.reshape(batch * beam, length),
        )
        logits = bound.logits(hidden[:, at]).reshape(batch, beam, -1)
        return logits, cache._replace(beams=prefix, filled=at + 1)

    shapes = Shapes(rows=(8,), sources=(16,), cache_lengths=(32,))
    found = make_search(begin, again, OPTIONS, shapes)(model, SOURCES, LIMITS)
    assert_same(found, roomy)


def test_accelerators_compile_few_shapes(monkeypatch):
    """A translator of 512 source and 625 target positions: a third of the programs."""
    cpu = choose_shapes(32, 512, 625)
    assert cpu.rows == (8, 32)
    monkeypatch.setattr(batched_search, "platform", lambda: "gpu")
    found = choose_shapes(32, 512, 625)
    assert found == Shapes((32,), (32, 128, 512), (64, 256, 625))
    assert 3 * np.prod([len(x) for x in found]) <= np.prod([len(x) for x in cpu])


def test_scores_are_nan_if_those_of_the_model_are(model):
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), model)
    shapes = Shapes(rows=(2,), sources=(4,), cache_lengths=(8,))
    search_all = make_search(start, step, OPTIONS, shapes)
    for found in search_all(bad, [[3], [4]], [3, 3]):
        assert found.tokens[0] == []
        assert np.isnan(found.scores[0])


def test_what_no_shape_holds_is_named(model):
    search_all = make_search(
        start, step, OPTIONS, Shapes(rows=(1,), sources=(4,), cache_lengths=(8,))
    )
    with pytest.raises(InputError, match="source: expected at most 4 tokens, found 5"):
        search_all(model, [[3] * 5], [3])
    with pytest.raises(InputError, match="max_length: expected less than 8, found 8"):
        search_all(model, [[3]], [8])
    assert search_all(model, [], []) == []
