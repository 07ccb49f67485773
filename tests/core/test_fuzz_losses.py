"""Random cases of the losses against plain numpy in float64, value and gradient.

RDROP_FUZZ_SECONDS sets the time of the slow test, 600 by default for all losses.
"""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from rdrop_jax import adaptive_rdrop_loss, large_vocab_rdrop_loss, rdrop_loss

SECONDS = float(os.environ.get("RDROP_FUZZ_SECONDS", "600"))
DRAWS = 40  # of the values of one compilation
STEP = 1e-6  # of the central difference


def log_softmax(x):
    return np.stack([reference.log_softmax(row) for row in x])


def drawn(rng, k, positions, given):
    """Values of the options of all losses, alpha among them."""
    values = {
        "alpha": 0.0 if k == 1 else float(rng.choice([0.0, 0.7, 5.0, 300.0])),
        "where": rng.random(positions) < 0.7,
        "weight": rng.random(positions) * (rng.random(positions) < 0.8),
        "label_weight": rng.random(positions) * (rng.random(positions) < 0.7),
    }
    return {name: values[name] for name in given}


def options_of(rng, k):
    """Names of the options that are given, and those that a compilation fixes."""
    names = [n for n in ("where", "weight", "label_weight") if rng.random() < 0.5]
    return ["alpha", *names], str(rng.choice(["sum", "mean"]))


def smoothing_of(rng):
    eps = float(rng.choice([0.0, 0.1, 0.9]))
    return eps, str(rng.choice(["uniform", "fairseq"]))


class Case(NamedTuple):
    """Shapes and fixed options of one compilation.

    Attributes:
      loss: ``(x, labels, **options) -> loss, metrics``.
      expected: the same of the reference: loss, cross entropy and divergence.
      draw: ``rng -> (x, labels, options)``.
    """

    loss: Callable[..., Any]
    expected: Callable[..., Any]
    draw: Callable[[np.random.Generator], Any]


def of_logits(rng):
    k, positions, classes = rng.integers(1, 4), rng.integers(1, 7), rng.integers(2, 9)
    given, scale = options_of(rng, k)
    eps, smoothing = smoothing_of(rng)
    divergence = str(rng.choice(list(reference.DIVERGENCES)))

    def draw(rng):
        logits = rng.normal(0, rng.choice([1e-3, 1.0, 20.0]), (k, positions, classes))
        logits += rng.choice([0.0, 300.0])
        labels = rng.integers(0, classes, positions)
        return logits, labels, drawn(rng, k, positions, given)

    def loss(z, labels, **options):
        return rdrop_loss(
            z,
            labels,
            label_smoothing=eps,
            smoothing=smoothing,
            divergence=divergence,
            objective_scale=scale,
            **options,
        )

    def expected(z, labels, **options):
        fixed = {"eps": eps, "smoothing": smoothing, "scale": scale}
        return reference.rdrop(z, labels, divergence=divergence, **fixed, **options)

    return Case(loss, expected, draw)


def large_vocabulary(rng):
    k, positions, width = rng.integers(1, 3), rng.integers(1, 9), rng.integers(1, 5)
    vocab, tied, biased = rng.integers(2, 30), rng.random() < 0.5, rng.random() < 0.5
    given, scale = options_of(rng, k)
    eps, smoothing = smoothing_of(rng)
    chunk_size = int(rng.integers(1, 12))

    def draw(rng):
        x = {
            "hidden": rng.normal(size=(k, positions, width)),
            "kernel": rng.normal(size=(vocab, width) if tied else (width, vocab)),
        }
        if biased:
            x["bias"] = rng.normal(0, 3, vocab)
        labels = rng.integers(0, vocab, positions)
        return x, labels, drawn(rng, k, positions, given)

    def loss(x, labels, **options):
        return large_vocab_rdrop_loss(
            **x,
            labels=labels,
            tied=tied,
            label_smoothing=eps,
            smoothing=smoothing,
            objective_scale=scale,
            chunk_size=chunk_size,
            **options,
        )

    def expected(x, labels, **options):
        kernel = x["kernel"].T if tied else x["kernel"]
        z = x["hidden"] @ kernel + x.get("bias", 0.0)
        fixed = {"eps": eps, "smoothing": smoothing, "scale": scale}
        return reference.rdrop(z, labels, **fixed, **options)

    return Case(loss, expected, draw)


def adaptive(rng):
    """An adaptive softmax is a softmax of the log probabilities of all words."""
    k, positions, width = rng.integers(1, 3), rng.integers(1, 9), rng.integers(1, 5)
    tails = rng.integers(1, 9, rng.integers(0, 4))
    head = rng.integers(1, 6)
    sizes = [head + len(tails), *tails]
    given, scale = options_of(rng, k)
    chunk_size = int(rng.integers(1, 12))

    def draw(rng):
        x = {
            "hidden": [rng.normal(size=(k, positions, width)) for _ in sizes],
            "kernels": [rng.normal(size=(size, width)) for size in sizes],
        }
        labels = rng.integers(0, head + sum(tails), positions)
        return x, labels, drawn(rng, k, positions, given)

    def loss(x, labels, **options):
        return adaptive_rdrop_loss(
            **x,
            labels=labels,
            objective_scale=scale,
            chunk_size=chunk_size,
            **options,
        )

    def expected(x, labels, **options):
        pairs = zip(x["hidden"], x["kernels"], strict=True)
        first, *rest = (
            np.stack([log_softmax(h[i] @ kernel.T) for i in range(k)])
            for h, kernel in pairs
        )
        words = [first[..., :head]]
        words += [first[..., head + i, None] + t for i, t in enumerate(rest)]
        z = np.concatenate(words, -1)
        return reference.rdrop(z, labels, scale=scale, **options)

    return Case(loss, expected, draw)


def differentiated(loss):
    """``(x, labels, options) -> value and metrics, gradient``, compiled."""

    def run(x, labels, options):
        value, metrics = loss(x, labels, **options)
        return value, (metrics["ce"].compute(), metrics["kl"].compute())

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def moved(x, direction, size):
    return jax.tree.map(lambda x, d: x + size * d, x, direction)


def check(case, compiled, rng):
    """Compare a draw with the reference, and its slope with a central difference."""
    x, labels, options = case.draw(rng)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), x)
    with jax.enable_x64(True):
        (value, parts), grad = compiled(
            *jax.tree.map(jnp.asarray, (x, labels, options))
        )
    pairs = zip(jax.tree.leaves(grad), jax.tree.leaves(direction), strict=True)
    slope = sum(float(np.vdot(g, d)) for g, d in pairs)
    wanted = case.expected(x, labels, **options)
    np.testing.assert_allclose([value, *parts], wanted, rtol=1e-9, atol=1e-12)
    ahead, back = (
        case.expected(moved(x, direction, size), labels, **options)[0]
        for size in (STEP, -STEP)
    )
    # The difference of two rounded values, over a small step.
    tolerance = 1e-4 * (1.0 + abs(slope)) + 1e-8 * abs(float(value))
    assert abs((ahead - back) / (2 * STEP) - slope) < tolerance


def check_draws(loss, seed, draws):
    """Several draws of the values of one compilation."""
    case = loss(np.random.default_rng(seed))
    compiled = differentiated(case.loss)
    for draw in range(draws):
        try:
            check(case, compiled, np.random.default_rng((seed, draw)))
        except Exception as error:
            error.add_note(f"{loss.__name__}, seed {seed}, draw {draw}")
            raise


LOSSES = [of_logits, large_vocabulary, adaptive]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_a_few_random_cases(loss):
    check_draws(loss, 1, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_random_cases_for_minutes(loss, capsys):
    end, seed = time.monotonic() + SECONDS / len(LOSSES), 2
    while time.monotonic() < end:
        check_draws(loss, seed, DRAWS)
        seed += 1
        if seed % 50 == 0:
            jax.clear_caches()  # every seed has its own shapes
    with capsys.disabled():
        count = f"{DRAWS * (seed - 2)} cases of {seed - 2} compilations"
        print(f"\n{loss.__name__}: {count}")
