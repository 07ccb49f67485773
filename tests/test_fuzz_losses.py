"""Random cases of the losses against plain numpy in float64, value and gradient.

RDROP_FUZZ_SECONDS sets the time of the slow test, 600 by default for all losses.
"""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from rdrop_jax import adaptive_rdrop_loss, large_vocab_rdrop_loss, rdrop_loss

SECONDS = float(os.environ.get("RDROP_FUZZ_SECONDS", "600"))
QUICK_CASES = 1
STEP = 1e-6  # of the central difference


def log_softmax(x):
    return np.stack([reference.log_softmax(row) for row in x])


def options_of(rng, k, positions):
    """Options of all losses, and of the reference."""
    given = {
        "where": rng.random(positions) < 0.7,
        "weight": rng.random(positions) * (rng.random(positions) < 0.8),
        "label_weight": rng.random(positions) * (rng.random(positions) < 0.7),
    }
    given = {name: x for name, x in given.items() if rng.random() < 0.5}
    alpha = 0.0 if k == 1 else float(rng.choice([0.0, 0.7, 5.0, 300.0]))
    return alpha, str(rng.choice(["sum", "mean"])), given


def smoothing_of(rng):
    eps = float(rng.choice([0.0, 0.1, 0.9]))
    return eps, str(rng.choice(["uniform", "fairseq"]))


def differentiated(loss, x, direction):
    """Value, metrics and the slope along a direction."""

    def run(x):
        value, metrics = loss(x)
        return value, (metrics["ce"].compute(), metrics["kl"].compute())

    with jax.enable_x64(True):
        (value, (ce, kl)), grad = jax.jit(jax.value_and_grad(run, has_aux=True))(
            jax.tree.map(jnp.asarray, x)
        )
        pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(direction), strict=True)
        slope = sum(float(np.vdot(g, d)) for g, d in pairs)
    return np.array([value, ce, kl]), slope


def moved(x, direction, size):
    return jax.tree.map(lambda x, d: x + size * d, x, direction)


def check(loss, expected, x, rng):
    """Compares with ``expected(x)``, and its central difference."""
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), x)
    found, slope = differentiated(loss, x, direction)
    np.testing.assert_allclose(found, expected(x), rtol=1e-9, atol=1e-12)
    ahead, back = (expected(moved(x, direction, size))[0] for size in (STEP, -STEP))
    # The difference of two rounded values, over a small step.
    tolerance = 1e-4 * (1.0 + abs(slope)) + 1e-8 * abs(found[0])
    assert abs((ahead - back) / (2 * STEP) - slope) < tolerance


def of_logits(rng):
    k, positions, classes = rng.integers(1, 4), rng.integers(1, 7), rng.integers(2, 9)
    logits = rng.normal(0, rng.choice([1e-3, 1.0, 20.0]), (k, positions, classes))
    logits += rng.choice([0.0, 300.0])
    labels = rng.integers(0, classes, positions)
    alpha, scale, given = options_of(rng, k, positions)
    eps, smoothing = smoothing_of(rng)
    options = {"alpha": alpha, "smoothing": smoothing} | given
    divergence = str(rng.choice(list(reference.DIVERGENCES)))

    def loss(z):
        return rdrop_loss(
            z,
            labels,
            label_smoothing=eps,
            divergence=divergence,
            objective_scale=scale,
            **options,
        )

    def expected(z):
        return reference.rdrop(
            z, labels, eps=eps, divergence=divergence, scale=scale, **options
        )

    check(loss, expected, logits, rng)


def large_vocabulary(rng):
    k, positions, width = rng.integers(1, 3), rng.integers(1, 9), rng.integers(1, 5)
    vocab, tied = rng.integers(2, 30), rng.random() < 0.5
    x = {
        "hidden": rng.normal(size=(k, positions, width)),
        "kernel": rng.normal(size=(vocab, width) if tied else (width, vocab)),
    }
    if rng.random() < 0.5:
        x["bias"] = rng.normal(0, 3, vocab)
    labels = rng.integers(0, vocab, positions)
    alpha, scale, given = options_of(rng, k, positions)
    eps, smoothing = smoothing_of(rng)
    options = {"alpha": alpha, "smoothing": smoothing} | given
    chunk_size = int(rng.integers(1, 12))

    def loss(x):
        return large_vocab_rdrop_loss(
            **x,
            labels=labels,
            tied=tied,
            label_smoothing=eps,
            objective_scale=scale,
            chunk_size=chunk_size,
            **options,
        )

    def expected(x):
        kernel = x["kernel"].T if tied else x["kernel"]
        z = x["hidden"] @ kernel + x.get("bias", 0.0)
        return reference.rdrop(z, labels, eps=eps, scale=scale, **options)

    check(loss, expected, x, rng)


def adaptive(rng):
    """An adaptive softmax is a softmax of the log probabilities of all words."""
    k, positions, width = rng.integers(1, 3), rng.integers(1, 9), rng.integers(1, 5)
    tails = rng.integers(1, 9, rng.integers(0, 4))
    head = rng.integers(1, 6)
    sizes = [head + len(tails), *tails]
    x = {
        "hidden": [rng.normal(size=(k, positions, width)) for _ in sizes],
        "kernels": [rng.normal(size=(size, width)) for size in sizes],
    }
    labels = rng.integers(0, head + sum(tails), positions)
    alpha, scale, given = options_of(rng, k, positions)
    chunk_size = int(rng.integers(1, 12))

    def loss(x):
        return adaptive_rdrop_loss(
            **x,
            labels=jnp.asarray(labels),
            alpha=alpha,
            objective_scale=scale,
            chunk_size=chunk_size,
            **given,
        )

    def expected(x):
        pairs = zip(x["hidden"], x["kernels"], strict=True)
        first, *rest = (
            np.stack([log_softmax(h[i] @ kernel.T) for i in range(k)])
            for h, kernel in pairs
        )
        words = [first[..., :head]]
        words += [first[..., head + i, None] + t for i, t in enumerate(rest)]
        z = np.concatenate(words, -1)
        return reference.rdrop(z, labels, alpha=alpha, scale=scale, **given)

    check(loss, expected, x, rng)


LOSSES = [of_logits, large_vocabulary, adaptive]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_a_few_random_cases(loss):
    for seed in range(1, 1 + QUICK_CASES):
        loss(np.random.default_rng(seed))


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_random_cases_for_minutes(loss):
    end, seed = time.monotonic() + SECONDS / len(LOSSES), 1 + QUICK_CASES
    while time.monotonic() < end:
        try:
            loss(np.random.default_rng(seed))
        except Exception as error:
            error.add_note(f"{loss.__name__}, seed {seed}")
            raise
        seed += 1
        if seed % 50 == 0:
            jax.clear_caches()  # every case has shapes of its own
