"""Cutoff of embeddings against plain numpy, in the models, and SimCut's loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference
from ml_collections import ConfigDict

from rdrop_jax.core.dropout import hash_bits
from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.models.adaptive import AdaptiveDecoder
from rdrop_jax.models.blocks import Rates
from rdrop_jax.models.decoder import Decoder
from rdrop_jax.models.encoder import Classifier, Encoder
from rdrop_jax.models.modernbert import ModernEncoder, Pattern
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize, Size
from rdrop_jax.tasks import cutoff, vocabulary_loss

KEY = jax.random.key(5)
# Tokens that may be cut: 18 of 20, 10 of 20, 1, none.
WHERE = np.zeros((4, 20), bool)
WHERE[0, 1:19] = WHERE[1, 3:13] = WHERE[2, 1:2] = True


def bits(*shape):
    return np.asarray(hash_bits(KEY, shape)).astype(np.float64) / 2**32


def test_token_cutoff():
    found = cutoff.token_cutoff(KEY, jnp.asarray(WHERE), rate=0.3)
    wanted = (bits(4, 20) < 0.7) | ~WHERE
    np.testing.assert_array_equal(found[..., 0], wanted)
    assert 0 < (~wanted).sum() < WHERE.sum()


def test_feature_cutoff():
    found = cutoff.feature_cutoff(KEY, jnp.asarray(WHERE), rate=0.25, width=64)
    np.testing.assert_array_equal(found[:, 0], bits(4, 64) < 0.75)
    assert 0.1 < 1 - np.mean(found) < 0.4


def test_span_cutoff():
    found = cutoff.span_cutoff(KEY, jnp.asarray(WHERE), rate=0.4)
    draws = np.asarray(hash_bits(KEY, (4,)))
    for row, where, draw in zip(np.asarray(found)[..., 0], WHERE, draws, strict=True):
        n = int(where.sum())
        length = int(0.4 * n)
        start = int(where.argmax()) + int(draw) % (n - length + 1)
        wanted = np.ones(20, bool)
        wanted[start : start + length] = False
        np.testing.assert_array_equal(row, wanted)
    starts = {
        int(np.argmin(cutoff.span_cutoff(key, jnp.asarray(WHERE[1:2]), rate=0.4)))
        for key in jax.random.split(KEY, 40)
    }
    assert starts == set(range(3, 10))


def test_a_cut_token_is_as_good_as_absent():
    """BERT's other tokens see what they would see if it were padding."""
    encoder = Encoder("bert", Size(2, 8, 2, 16), 30, max_positions=6)
    module = Classifier(encoder, 3)
    tokens = jnp.array([[2, 7, 8, 9, 3, 0]])
    types, where = jnp.zeros_like(tokens), tokens != 0
    init = jax.jit(functools.partial(module.init, train=False))
    params = init(KEY, tokens, types, where)
    without = jnp.array([[True, True, False, True, True, False]])
    wanted = module.apply(params, tokens, types, without, train=False)
    found = module.apply(
        params, tokens, types, where, jnp.where(tokens == 8, False, True)[..., None],
        train=False,
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_padding_changes_nothing_where_a_local_window_is_cut():
    pattern = Pattern(global_every=3, local_window=4)
    encoder = ModernEncoder(Size(2, 8, 2, 16), 30, pad_id=0, pattern=pattern)
    module = Classifier(encoder, 3, pooling="mean")
    tokens = jnp.arange(1, 17)[None]
    keep = jnp.asarray((np.arange(16) < 3) | (np.arange(16) > 12))[None, :, None]
    params = jax.jit(functools.partial(module.init, train=False))(
        KEY, tokens, tokens * 0, tokens > 0
    )

    apply = jax.jit(functools.partial(module.apply, train=False))

    def logits(padding):
        ids = jnp.pad(tokens, [(0, 0), (0, padding)])
        kept = jnp.pad(keep, [(0, 0), (0, padding), (0, 0)], constant_values=True)
        return apply(params, ids, ids * 0, ids > 0, kept)

    np.testing.assert_allclose(logits(9), logits(0), rtol=1e-4, atol=1e-6)


def zeroed(params, name, at):
    table = params["params"][name]
    return {"params": params["params"] | {name: table.at[at].set(0.0)}}


TOKENS = jnp.array([[4, 5, 6, 7], [8, 5, 9, 10]])
# A token that is cut everywhere, and two features of the first row's table.
PLACES = {"token": 5, "feature": (slice(None), jnp.array([1, 4]))}
KEEPS = {
    "token": (TOKENS != 5)[..., None],
    "feature": jnp.ones((2, 1, 8), bool).at[:, :, jnp.array([1, 4])].set(False),
}


@pytest.mark.parametrize("kind", KEEPS)
def test_a_cut_embedding_is_a_zero_of_the_table(kind):
    """Positions stay, and the rest of the model is that of the full inputs."""
    rates, size = Rates(0.0), Size(1, 8, 2, 16)
    language = Decoder(12, size, rates, max_length=4)
    params = language.init(KEY, TOKENS, train=False)
    found = language.apply(params, TOKENS, KEEPS[kind], train=False)
    other = language.apply(
        zeroed(params, "embedding", PLACES[kind]), TOKENS, train=False
    )
    np.testing.assert_array_equal(found.hidden, other.hidden)

    translator = Seq2Seq(12, Seq2SeqSize(1, 1, 8, 2, 16), rates, share="none")
    where = jnp.ones((2, 4), bool)
    params = translator.init(KEY, TOKENS, where, TOKENS, train=False)
    for name, keeps in {
        "source_embedding": (KEEPS[kind], None),
        "embedding": (None, KEEPS[kind]),
    }.items():
        found = translator.apply(params, TOKENS, where, TOKENS, *keeps, train=False)
        other = translator.apply(
            zeroed(params, name, PLACES[kind]), TOKENS, where, TOKENS, train=False
        )
        np.testing.assert_array_equal(found, other)


def test_adaptive_inputs_are_cut():
    module = AdaptiveDecoder(
        12, (4, 8), 2, Size(1, 8, 2, 16), Rates(0.0), 0.0, max_length=4
    )
    params = module.init(KEY, TOKENS, train=False)
    found = module.apply(params, TOKENS, KEEPS["token"], train=False).hidden[0]
    other = module.apply(
        zeroed(params, "embedding_1", 1), TOKENS, train=False
    ).hidden[0]  # fmt: skip
    np.testing.assert_allclose(found, other, rtol=1e-6)


def simcut(z, labels, where, alpha, smoothing):
    """SimCut's published loss: label smoothed CE of the first pass, KL(p || q)."""
    p, q = (np.apply_along_axis(reference.log_softmax, -1, x) for x in z)
    target = np.eye(z.shape[-1])[labels] * (1 - smoothing) + smoothing / z.shape[-1]
    ce = -(target * p).sum(-1)
    kl = (np.exp(p) * (p - q)).sum(-1)
    return ((ce + alpha * kl) * where).sum() / where.sum()


def simcut_case(vocab, **fields):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(vocab, 6))
    batch = {
        "labels": jnp.asarray(rng.integers(0, vocab, (3, 4))),
        "where": jnp.asarray(rng.random((3, 4)) < 0.7),
    }
    options = {
        "alpha": 3.0,
        "num_passes": None,
        "divergence": "symmetric_kl",
        "stop_gradient": "none",
        "label_smoothing": 0.1,
        "smoothing": "uniform",
        "views": "simcut",
    }
    config = ConfigDict({"rdrop": options | fields})
    loss = vocabulary_loss.make_loss(config, vocab)
    output = LinearOutput(*(jnp.asarray(x, jnp.float32) for x in (hidden, kernel)))
    return loss, output, batch, hidden @ kernel.T


@pytest.mark.parametrize("vocab", [7, vocabulary_loss.LARGE_VOCAB])
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_simcut_is_the_published_loss(vocab, scale):
    loss, output, batch, z = simcut_case(vocab)
    wanted = simcut(z, np.array(batch["labels"]), np.array(batch["where"]), 3.0, 0.1)
    found, metrics = loss(output, batch, alpha=3.0, objective_scale=scale)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["ce"].compute() + 3 * metrics["kl"].compute(), wanted, rtol=1e-5
    )
    given = (2 * metrics["ce"].weight, 3 * metrics["kl"].weight)
    found, _ = loss(output, batch, alpha=3.0, denominators=given)
    wanted = metrics["ce"].compute() / 2 + metrics["kl"].compute()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # A step without R-Drop has the complete inputs alone.
    one = output._replace(hidden=output.hidden[:1])
    np.testing.assert_allclose(
        loss(one, batch, alpha=0.0)[0], metrics["ce"].compute(), rtol=1e-5
    )


@pytest.mark.parametrize("vocab", [7, vocabulary_loss.LARGE_VOCAB])
def test_simcut_has_gradients_on_both_sides_unless_stopped(vocab):
    """Published code holds nothing constant; "targets" holds p."""

    def gradient(part, **fields):
        loss, output, batch, _ = simcut_case(vocab, **fields)

        def of_hidden(hidden):
            total, _ = loss(output._replace(hidden=hidden), batch, alpha=part)
            return total

        return np.asarray(jax.jit(jax.grad(of_hidden))(output.hidden))

    full, plain = gradient(3.0), gradient(0.0)
    stopped = gradient(3.0, stop_gradient="targets")
    assert not plain[1].any()
    assert np.abs(full[0] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(stopped[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(stopped[1], full[1], rtol=1e-4, atol=1e-7)
