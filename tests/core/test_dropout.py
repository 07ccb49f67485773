"""Masks: the contract of the hash, and its statistics against what chance allows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rdrop_jax import dropout, dropout_mask, layer_drop
from rdrop_jax.core.dropout import hash_bits
from rdrop_jax.training.mesh import batch_sharding, make_mesh

SHAPE = (64, 32, 128)
SIZE = 64 * 32 * 128
RATES = (0.1, 0.5, 0.9)
# The largest of a few thousand normal deviates stays below 4.5.
LIMIT = 4.5


def training_keys():
    """As training derives them: step, then pass, then site."""
    root = jax.random.key(3)
    return [
        jax.random.fold_in(jax.random.split(jax.random.fold_in(root, step), 2)[k], site)
        for step, k, site in itertools.product(range(6), range(2), range(3))
    ]


@pytest.fixture(scope="module", params=RATES)
def masks(request):
    """36 masks, and each as a row of standard scores."""
    rate = request.param
    draw = jax.jit(lambda key: dropout_mask(key, rate, SHAPE))
    kept = np.stack([np.asarray(draw(key)) for key in training_keys()])
    scores = (kept - (1 - rate)) / np.sqrt(rate * (1 - rate))
    return rate, kept, scores.astype(np.float32)


def test_rate_is_exact(masks):
    _, _, scores = masks
    z = scores.reshape(len(scores), -1).sum(1, dtype=np.float64) / np.sqrt(SIZE)
    assert np.abs(z).max() < LIMIT
    assert abs(z.sum() / np.sqrt(len(z))) < LIMIT


def test_steps_passes_and_sites_are_not_correlated(masks):
    _, _, scores = masks
    flat = scores.reshape(len(scores), -1)
    z = (flat @ flat.T) / np.sqrt(SIZE)
    assert np.abs(z[np.triu_indices(len(z), 1)]).max() < LIMIT


def test_neighbours_along_every_axis_are_not_correlated(masks):
    _, _, scores = masks
    for x in scores[:8]:
        for axis, lag in itertools.product(range(3), (1, 2, 3, 4, 8, 16, 31)):
            size = x.shape[axis]
            ahead = np.take(x, range(lag, size), axis)
            behind = np.take(x, range(size - lag), axis)
            z = (ahead * behind).sum(dtype=np.float64) / np.sqrt(ahead.size)
            assert abs(z) < LIMIT, (axis, lag)


def test_rows_and_examples_are_not_correlated(masks):
    _, _, scores = masks
    for x in scores[:4]:
        for rows in (x.reshape(64, -1), x.reshape(64 * 32, -1)):
            z = (rows @ rows.T) / np.sqrt(rows.shape[1])
            # Two million pairs of short rows reach further than a normal one would.
            limit = LIMIT if len(rows) == 64 else 9.0
            off = np.abs(z[np.triu_indices(len(rows), 1)])
            assert off.max() < limit
            assert np.mean(off**2) == pytest.approx(1.0, abs=0.1)


def test_patterns_of_eight_bits_are_as_frequent_as_they_should_be(masks):
    rate, kept, _ = masks
    ones = np.array([bin(code).count("1") for code in range(256)])
    share = (1 - rate) ** ones * rate ** (8 - ones)
    for axis in range(3):
        bits = np.moveaxis(kept, axis + 1, -1).reshape(-1, 8)
        found = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
        expected = share * len(bits)
        usual = expected > 10
        chi2 = ((found - expected)[usual] ** 2 / expected[usual]).sum()
        assert (chi2 - usual.sum()) / np.sqrt(2 * usual.sum()) < LIMIT


def test_every_bit_and_byte_is_uniform():
    for key in training_keys()[:6]:
        bits = np.asarray(hash_bits(key, (2**18,)))
        for shift in range(32):
            z = ((bits >> shift & 1) - 0.5).sum() * 2 / np.sqrt(bits.size)
            assert abs(z) < LIMIT
        for shift in (0, 8, 16, 24):
            found = np.bincount(bits >> shift & 255, minlength=256)
            chi2 = ((found - 2**10) ** 2 / 2**10).sum()
            assert (chi2 - 255) / np.sqrt(510) < LIMIT


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_any_kind_typed_or_raw(impl):
    key = jax.random.key(1, impl=impl)
    mask = dropout_mask(key, 0.5, (8, 8))
    np.testing.assert_array_equal(
        mask, dropout_mask(jax.random.key_data(key), 0.5, (8, 8))
    )
    other = dropout_mask(jax.random.key(2, impl=impl), 0.5, (8, 8))
    assert np.any(mask != other)


def test_every_word_and_bit_of_the_key_counts():
    base = np.array([12, 34], np.uint32)
    mask = np.asarray(dropout_mask(jnp.asarray(base), 0.5, (4096,)))
    for word, bit in itertools.product(range(2), range(32)):
        flipped = base.copy()
        flipped[word] ^= np.uint32(1 << bit)
        other = np.asarray(dropout_mask(jnp.asarray(flipped), 0.5, (4096,)))
        assert abs((mask != other).mean() - 0.5) < LIMIT * 0.5 / 64


def test_a_position_beyond_32_bits_does_not_wrap():
    """Rows 0 and 2**32 / width would share a mask under a flat index."""
    bits = jax.eval_shape(lambda: hash_bits(jax.random.key(0), (2**17, 2**17)))
    assert bits.shape == (2**17, 2**17)
    tall = np.asarray(hash_bits(jax.random.key(0), (2**12, 2)))
    assert len(np.unique(tall)) > 2**13 - 16


def test_values_scale_and_gradient():
    x = jax.random.normal(jax.random.key(1), (64, 50))
    key = jax.random.key(0)
    kept = dropout_mask(key, 0.3, x.shape)
    y, pull = jax.vjp(lambda x: dropout(key, x, 0.3), x)
    np.testing.assert_allclose(y, jnp.where(kept, x / 0.7, 0.0), rtol=1e-6)
    np.testing.assert_allclose(pull(x)[0], y, rtol=1e-6)
    _, forward = jax.jvp(lambda x: dropout(key, x, 0.3), (x,), (x,))
    np.testing.assert_allclose(forward, y, rtol=1e-6)
    assert dropout(key, x, 0.0) is x
    half = dropout(key, x.astype(jnp.bfloat16), 0.3)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half != 0, kept)


def test_no_mask_is_kept_for_the_backward_pass():
    key = jax.random.key(0)

    def kept(**options):
        _, pull = jax.vjp(
            lambda x: dropout(key, x, 0.3, **options), jnp.ones((128, 64))
        )
        return sum(x.nbytes for x in jax.tree.leaves(pull))

    assert kept() <= 64  # the key
    assert kept(masks="bernoulli") <= 64


def test_the_same_mask_on_one_and_on_eight_devices():
    mesh = make_mesh()
    key = jax.random.key(5)
    x = jnp.ones((16, 24))

    @jax.jit
    def drop(x):
        return dropout(key, x, 0.5)

    sharded = drop(jax.device_put(x, batch_sharding(mesh)))
    np.testing.assert_array_equal(sharded, drop(x))


def test_parts_of_an_array_need_keys_of_their_own():
    """Under shard_map and vmap every part begins at position 0."""
    mesh = make_mesh()
    x = jnp.ones((8, 64))

    def by_shard(keys):
        return jax.shard_map(
            lambda key, x: dropout(key[0], x, 0.5),
            mesh=mesh,
            in_specs=(P("data"), P("data")),
            out_specs=P("data"),
        )(keys, x)

    def by_row(keys):
        return jax.vmap(lambda key, row: dropout(key, row, 0.5))(keys, x)

    one, many = jax.random.key(0), jax.random.split(jax.random.key(0), 8)
    for apply in (by_shard, by_row):
        same = np.asarray(apply(jnp.broadcast_to(one, 8)))
        assert all(np.array_equal(same[0], row) for row in same)
        own = np.asarray(apply(many))
        assert len({row.tobytes() for row in own}) == 8


def test_layer_drop_skips_whole_examples():
    old, new = jnp.zeros((4000, 3)), jnp.ones((4000, 3))
    rows = np.asarray(layer_drop(jax.random.key(0), old, new, 0.2))
    assert np.all(rows == rows[:, :1])  # never a part of an example, never rescaled
    z = (rows[:, 0].mean() - 0.8) / np.sqrt(0.16 / 4000)
    assert abs(z) < LIMIT
    assert layer_drop(jax.random.key(0), old, new, 0.0) is new


def test_bernoulli_stays_selectable():
    key = jax.random.key(0)
    found = dropout_mask(key, 0.25, (100,), masks="bernoulli")
    np.testing.assert_array_equal(found, jax.random.bernoulli(key, 0.75, (100,)))


def test_what_cannot_be_used_is_named():
    key = jax.random.key(0)
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
            dropout_mask(key, rate, (2,))
    with pytest.raises(ValueError, match="masks must be one of"):
        dropout_mask(key, 0.5, (2,), masks="threefry")
    with pytest.raises(ValueError, match=r"one PRNG key: found shape \(2,\)"):
        dropout_mask(jax.random.split(key), 0.5, (2,))


@pytest.mark.slow
def test_training_reaches_what_it_reaches_with_jax_random(tmp_path):
    tiny = pytest.importorskip("helpers.tiny", reason="needs the extra train")
    options = {
        "total_steps": 300,
        "eval__every": 300,
        "checkpoint__every": 300,
        "log__every": 100,
        "model__width": 32,
        "model__mlp_width": 64,
        "model__patch_size": 2,
        "model__dropout": 0.1,
        "optimizer__warmup": 20,
    }
    ours, theirs = (
        tiny.train(tmp_path / masks, model__masks=masks, **options)["test"]["accuracy"]
        for masks in ("hash", "bernoulli")
    )
    error = np.sqrt(2 * theirs * (1 - theirs) / 360)  # of a difference, by chance
    assert theirs > 0.6  # it learns; chance is 0.1
    assert abs(ours - theirs) < 3 * error
