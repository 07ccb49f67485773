"""Passes over one batch: the same masks both ways, and guards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy

from rdrop_jax import check_stochastic, forward_passes

KEY = jax.random.key(3)


@pytest.mark.parametrize("num_passes", [1, 2, 3])
@pytest.mark.parametrize("impl", ["threefry2x32", "raw"])
def test_unroll_equals_vmap(num_passes, impl):
    key = jax.random.PRNGKey(3) if impl == "raw" else jax.random.key(3, impl=impl)
    outputs = {
        how: forward_passes(
            toy.forward, toy.params(), toy.batch(), key, num_passes=num_passes, how=how
        )
        for how in ("unroll", "vmap", "auto")
    }
    assert outputs["unroll"].shape == (num_passes, 8, 3)
    np.testing.assert_allclose(outputs["unroll"], outputs["vmap"], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(outputs["auto"], outputs["unroll"])


def test_masks_are_equal_bit_for_bit():
    def mask(params, batch, key):
        return jax.random.bernoulli(key, 0.7, (64, 8))

    ways = [forward_passes(mask, None, None, KEY, how=h) for h in ("unroll", "vmap")]
    np.testing.assert_array_equal(*ways)
    assert np.any(ways[0][0] != ways[0][1])


@pytest.mark.parametrize("how", ["unroll", "vmap"])
def test_out_axes_keep_one_copy_of_what_is_shared(how):
    def forward(params, batch, key):
        return {"hidden": toy.forward(params, batch, key), "kernel": params["out"]}

    found = forward_passes(
        forward,
        toy.params(),
        toy.batch(),
        KEY,
        how=how,
        out_axes={"hidden": 1, "kernel": None},
    )
    assert found["hidden"].shape == (8, 2, 3)
    np.testing.assert_array_equal(found["kernel"], toy.params()["out"])


@pytest.mark.parametrize("how", ["unroll", "vmap"])
def test_aux_is_stacked(how):
    def forward(params, batch, key):
        return toy.forward(params, batch, key), {"seen": jnp.sum(batch["x"])}

    _, aux = forward_passes(
        forward, toy.params(), toy.batch(), KEY, how=how, has_aux=True
    )
    assert aux["seen"].shape == (2,)


def test_keys_may_be_given():
    keys = jax.random.split(KEY, 2)
    args = (toy.forward, toy.params(), toy.batch())
    np.testing.assert_array_equal(
        forward_passes(*args, keys), forward_passes(*args, KEY)
    )


def test_one_key_twice_is_refused():
    for keys in (jnp.stack([KEY, KEY]), jnp.stack([jax.random.PRNGKey(1)] * 2)):
        with pytest.raises(ValueError, match="found one key twice"):
            forward_passes(toy.forward, toy.params(), toy.batch(), keys)


def test_bad_arguments_are_named():
    args = (toy.forward, toy.params(), toy.batch())
    with pytest.raises(ValueError, match="num_passes must be at least 1: found 0"):
        forward_passes(*args, KEY, num_passes=0)
    with pytest.raises(ValueError, match="or num_passes=3 of them: found 2"):
        forward_passes(*args, jax.random.split(KEY, 2), num_passes=3)
    with pytest.raises(ValueError, match="how must be one of"):
        forward_passes(*args, KEY, how="concatenate")


def test_each_pass_may_have_a_forward_of_its_own():
    forwards = (toy.forward, toy.plain_forward)
    keys = jax.random.split(KEY, 2)
    args = (toy.params(), toy.batch())
    found = forward_passes(forwards, *args, keys)
    for i, forward in enumerate(forwards):
        np.testing.assert_array_equal(found[i], forward(*args, keys[i]))
    with pytest.raises(ValueError, match="or num_passes=3 of them: found 2"):
        forward_passes(forwards, *args, KEY, num_passes=3)
    with pytest.raises(ValueError, match="Use how='unroll'"):
        forward_passes(forwards, *args, KEY, how="vmap")


def test_check_stochastic_compares_the_passes_that_are_made():
    args = (toy.params(), toy.batch(), KEY)
    check_stochastic((toy.plain_forward, toy.forward), *args)
    check_stochastic((toy.plain_forward, toy.plain_forward, toy.forward), *args)
    with pytest.raises(ValueError, match="the same outputs"):
        check_stochastic((toy.plain_forward, toy.plain_forward), *args)


def test_check_stochastic_finds_dropout_that_is_off():
    check_stochastic(toy.forward, toy.params(), toy.batch(), KEY)
    with pytest.raises(ValueError, match="two dropout keys give the same outputs"):
        check_stochastic(toy.plain_forward, toy.params(), toy.batch(), KEY)


def test_check_stochastic_tries_again_where_a_mask_is_small():
    """Two keys in three drop the same rows of two."""

    def forward(params, batch, key):
        keep = jax.random.bernoulli(key, 0.9, (len(batch["x"]), 1))
        return jnp.where(keep, batch["x"] @ params["in"], 0.0) + batch["bias"]

    batch = toy.batch() | {"bias": jnp.float32(1.0)}
    for seed in range(4):
        check_stochastic(forward, toy.params(), batch, jax.random.key(seed))


def test_check_stochastic_sees_through_a_zero_head():
    params = toy.params() | {"out": jnp.zeros((16, 3))}
    check_stochastic(toy.forward, params, toy.batch(), KEY)


def test_shared_work_before_the_first_dropout_is_done_once():
    def forward(params, batch, key):
        h = batch["x"] @ params["in"]  # precedes dropout
        h = jnp.where(jax.random.bernoulli(key, 0.8, h.shape), h, 0.0)
        return h @ params["out"]

    for how in ("unroll", "vmap"):
        run = jax.jit(
            lambda p, b, k, how=how: forward_passes(forward, p, b, k, how=how)
        )
        text = run.lower(toy.params(), toy.batch(), KEY).compile().as_text()
        wide = [
            line for line in text.splitlines() if " dot(" in line and "8,16]" in line
        ]
        assert len(wide) == 1, text


def cropped(batch, key):
    keep = jax.random.bernoulli(key, 0.5, batch["x"].shape)
    return batch | {"x": jnp.where(keep, batch["x"], 0.0)}


def linear(params, batch, key):
    return batch["x"] @ params["in"]


@pytest.mark.parametrize("how", ["unroll", "vmap"])
def test_each_pass_has_its_own_view(how):
    """A model without dropout: only its inputs differ, by key alone."""
    of = lambda key, **options: forward_passes(  # noqa: E731
        linear, toy.params(), toy.batch(), key, how=how, **options
    )
    found = of(KEY, views=cropped)
    assert np.mean(np.any(found[0] != found[1], axis=-1)) > 0.5
    np.testing.assert_array_equal(found, of(KEY, views=cropped))
    assert np.any(found != of(jax.random.key(4), views=cropped))
    np.testing.assert_array_equal(*of(KEY))  # the paper's method: equal inputs


def test_a_view_for_each_pass():
    """The first pass sees the inputs as they are."""
    views = [lambda batch, key: batch, cropped]
    found = forward_passes(linear, toy.params(), toy.batch(), KEY, views=views)
    plain = linear(toy.params(), toy.batch(), None)
    np.testing.assert_array_equal(found[0], plain)
    assert np.any(found[1] != plain)
    with pytest.raises(ValueError, match="views: expected one, or one per pass, 2"):
        forward_passes([linear] * 2, toy.params(), toy.batch(), KEY, views=views[:1])
