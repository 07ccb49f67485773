"""Sampling: what may be drawn, and what a draw depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax.decoding.sampling import nucleus, sample
from rdrop_jax.models.cache import Cache

WORDS = 11
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(WORDS, WORDS)) * 2)


def step(ids, cache):
    """The next word depends on the last and on how many came before."""
    logits = TABLE[ids[:, 0]] + 0.3 * jnp.sin(cache.filled * jnp.arange(WORDS))[None]
    return logits[:, None], cache._replace(filled=cache.filled + 1)


def run(prompts, numbers, *, time=9, temperature=1.0, top_p=1.0, forbid=(), seed=0):
    tokens = np.zeros((len(prompts), time), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(p) for p in prompts])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
        jax.random.key(seed), jnp.asarray(numbers)
    )
    cache = Cache((), (), jnp.int32(0))
    return sample(
        step,
        cache,
        jnp.asarray(tokens),
        lengths,
        keys,
        temperature=temperature,
        top_p=top_p,
        forbid=forbid,
    )


def test_nucleus_against_enumeration():
    rng = np.random.default_rng(1)
    for top_p in (0.05, 0.4, 0.9, 1.0):
        for row in rng.normal(size=(20, 6)).astype(np.float32):
            probs = np.exp(row) / np.exp(row).sum()
            kept, mass = set(), 0.0
            for i in np.argsort(-probs):
                if mass >= top_p:
                    break
                kept.add(int(i))
                mass += probs[i]
            found = nucleus(jnp.asarray(row)[None], top_p)[0]
            assert set(np.flatnonzero(np.isfinite(found)).tolist()) == kept
            np.testing.assert_array_equal(found[jnp.isfinite(found)], row[sorted(kept)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_follows_logits_that_are_nan(temperature, monkeypatch):
    monkeypatch.setitem(globals(), "TABLE", TABLE.at[5, 0].set(jnp.nan))
    found = run([[3, 5], [3, 4]], [0, 1], time=3, temperature=temperature)
    assert found[0].tolist() == [3, 5, -1]
    assert found[1, 2] >= 0


def test_greedy_against_a_loop():
    (found,) = run([[3, 5]], [0], temperature=0.0)
    tokens = [3, 5]
    for at in range(1, 8):
        z = TABLE[tokens[-1]] + 0.3 * jnp.sin(at * jnp.arange(WORDS))
        tokens.append(int(jnp.argmax(z)))
    assert found.tolist() == tokens


def test_a_row_depends_on_its_prompt_and_key_alone():
    prompts = [[3, 5], [1], [2, 4, 6]]
    together = run(prompts, [0, 1, 2])
    for row, prompt in enumerate(prompts):
        alone = run([prompt], [row])[0]
        np.testing.assert_array_equal(together[row], alone)
        assert together[row, : len(prompt)].tolist() == prompt
    np.testing.assert_array_equal(together, run(prompts, [0, 1, 2]))
    assert (together != run(prompts, [0, 1, 2], seed=1)).any()
    assert (run([[3], [3]], [0, 1])[0] != run([[3], [3]], [0, 1])[1]).any()


def test_what_is_forbidden_is_never_drawn():
    found = run([[1]] * 40, range(40), temperature=3.0)
    assert (found[:, 1:] == 4).any()
    found = run([[1]] * 40, range(40), temperature=3.0, forbid=(4,))
    assert not (found[:, 1:] == 4).any()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_have_the_probabilities_of_the_temperature(temperature):
    count = 4000
    found = run([[1]] * count, range(count), time=2, temperature=temperature)
    expected = jax.nn.softmax(TABLE[1] / temperature)
    share = np.bincount(np.asarray(found[:, 1]), minlength=WORDS) / count
    np.testing.assert_allclose(share, expected, atol=4 * 0.5 / count**0.5)
