"""The objective against plain numpy, and what must hold of it."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference
from jax.test_util import check_grads

from rdrop_jax import (
    bernoulli_symmetric_kl,
    kl_divergence,
    rdrop_loss,
    rdrop_multilabel_loss,
    rdrop_regression_loss,
    symmetric_kl,
)
from rdrop_jax.core import options, terms

DIVERGENCES = ("symmetric_kl", "forward_kl", "reverse_kl", "js", "squared")


def make(seed, k, positions, classes, *, forbid=False, soft=False):
    """Logits, labels and weights; a few impossible classes, none of them a label."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (k, positions, classes))
    labels = rng.integers(0, classes, positions)
    if forbid:
        dead = rng.random((positions, classes)) < 0.3
        dead[np.arange(positions), labels] = False
        logits[:, dead] = -np.inf
        alive = ~dead
    else:
        alive = np.ones((positions, classes), bool)
    if soft:
        labels = rng.random((positions, classes)) * alive
        labels /= labels.sum(-1, keepdims=True)
    return logits, labels, rng


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(1, 5, 4), (2, 5, 4), (4, 1, 2)]),  # few to compile
    alpha=st.sampled_from([0.0, 0.7, 5.0]),
    eps=st.sampled_from([0.0, 0.1]),
    smoothing=st.sampled_from(["uniform", "fairseq"]),
    divergence=st.sampled_from(DIVERGENCES),
    scale=st.sampled_from(["sum", "mean"]),
    masks=st.sets(st.sampled_from(["where", "weight", "label_weight"])),
    forbid=st.booleans(),
    soft=st.booleans(),
)
def test_loss_equals_plain_numpy(
    seed,
    shape,
    alpha,
    eps,
    smoothing,
    divergence,
    scale,
    masks,
    forbid,
    soft,
):
    k, positions, classes = shape
    alpha = 0.0 if k == 1 else alpha  # one pass has no consistency term
    logits, labels, rng = make(seed, k, positions, classes, forbid=forbid, soft=soft)
    given = {
        "where": rng.random(positions) < 0.7,
        "weight": rng.random(positions) * (rng.random(positions) < 0.8),
        "label_weight": rng.random(positions) * (rng.random(positions) < 0.7),
    }
    given = {name: given[name] for name in masks}
    expected = reference.rdrop(
        logits,
        labels,
        alpha=alpha,
        eps=eps,
        smoothing=smoothing,
        divergence=divergence,
        scale=scale,
        **given,
    )
    if "where" in given:  # what is masked may hold anything
        logits[:, ~given["where"]] = np.nan
        if not soft:
            labels[~given["where"]] = -7
    with jax.enable_x64(True):
        loss, metrics = rdrop_loss(
            jnp.asarray(logits),
            jnp.asarray(labels),
            alpha=alpha,
            label_smoothing=eps,
            smoothing=smoothing,
            divergence=divergence,
            objective_scale=scale,
            **{name: jnp.asarray(value) for name, value in given.items()},
        )
        found = (loss, metrics["ce"].compute(), metrics["kl"].compute())
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def example(seed=0, k=2, positions=5, classes=4):
    logits, labels, _ = make(seed, k, positions, classes)
    return jnp.asarray(logits, jnp.float32), jnp.asarray(labels)


def test_gradients_are_numerically_right():
    logits, labels = example()
    where = jnp.array([True, True, False, True, True])
    for divergence in DIVERGENCES:
        with jax.enable_x64(True):
            options = {"alpha": 2.0, "label_smoothing": 0.1, "divergence": divergence}

            @jax.jit
            def loss(z, options=options):
                return rdrop_loss(jnp.asarray(z), labels, where=where, **options)[0]

            check_grads(
                loss,
                (logits.astype(jnp.float64),),
                order=2 if divergence == "symmetric_kl" else 1,
                modes=["fwd", "rev"],
            )


def test_alpha_zero_is_plain_training_exactly():
    logits, labels = example(k=1)
    loss, metrics = rdrop_loss(logits, labels, alpha=0.0)
    plain = -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(logits[0]), labels[:, None], 1)
    )
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    assert float(metrics["kl"].compute()) == 0.0
    with pytest.raises(ValueError, match="alpha must be 0 for one pass"):
        rdrop_loss(logits, labels, alpha=9.0)


def test_alpha_zero_ignores_an_infinite_divergence():
    logits = jnp.array([[[0.0, 1.0, 2.0]], [[0.0, -jnp.inf, 2.0]]])
    loss, _ = rdrop_loss(logits, jnp.array([0]), alpha=0.0)
    assert np.isfinite(loss)
    loss, _ = rdrop_loss(logits, jnp.array([0]), alpha=1.0)
    assert np.isposinf(loss)


def test_swapping_passes_changes_nothing():
    logits, labels = example()
    one, _ = rdrop_loss(logits, labels, alpha=3.0)
    other, _ = rdrop_loss(logits[::-1], labels, alpha=3.0)
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_masked_rows_deleted_change_nothing(divergence):
    logits, labels = example(positions=6)
    where = jnp.array([True, False, True, True, False, True])
    wild = jnp.where(where[:, None], logits, jnp.nan)
    wild_labels = jnp.where(where, labels, 99)
    kept, kept_labels = logits[:, where], labels[where]

    def loss(z, y, **mask):
        return rdrop_loss(
            z, y, alpha=2.0, label_smoothing=0.1, divergence=divergence, **mask
        )[0]

    gradient = jax.jit(jax.value_and_grad(loss))
    masked, grad = gradient(wild, wild_labels, where=where)
    deleted, kept_grad = gradient(kept, kept_labels)
    np.testing.assert_allclose(masked, deleted, rtol=1e-6)
    np.testing.assert_allclose(grad[:, where], kept_grad, rtol=1e-5, atol=1e-7)
    assert not np.any(grad[:, ~where])


@pytest.mark.parametrize("label", [-1, 4, 100])
def test_a_label_out_of_range_gives_nan_unless_masked(label):
    logits, labels = example()
    bad = labels.at[2].set(label)
    loss, grad = jax.value_and_grad(lambda z: rdrop_loss(z, bad, alpha=1.0)[0])(logits)
    assert np.isnan(loss)
    assert np.isnan(grad).any()
    weight = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    for mask in ({"where": weight > 0}, {"weight": weight}, {"label_weight": weight}):
        assert np.isfinite(rdrop_loss(logits, bad, alpha=1.0, **mask)[0])


def test_unlabelled_rows_enter_the_divergence_alone():
    logits, labels = example()
    none = jnp.zeros(5)
    loss, metrics = rdrop_loss(logits, labels, alpha=2.0, label_weight=none)
    s = symmetric_kl(logits[0], logits[1])
    np.testing.assert_allclose(loss, 2.0 * jnp.mean(s), rtol=1e-6)
    assert float(metrics["ce"].weight) == 0.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, labels = example(classes=50)
    half = logits.astype(dtype)
    loss, _ = rdrop_loss(half, labels, alpha=1.0)
    full, _ = rdrop_loss(half.astype(jnp.float32), labels, alpha=1.0)
    assert loss.dtype == jnp.float32
    assert float(loss) == float(full)


@pytest.mark.parametrize("stacked", ["blocks", "interleaved"])
def test_stacked_logits_are_one_reshape_away(stacked):
    logits, labels = example()
    if stacked == "blocks":
        flat = logits.reshape(-1, 4)  # [x; x]
        back = flat.reshape(2, -1, 4)
    else:
        flat = logits.swapaxes(0, 1).reshape(-1, 4)  # repeat(x, 2)
        back = flat.reshape(-1, 2, 4).swapaxes(0, 1)
    np.testing.assert_array_equal(back, logits)
    assert np.isfinite(rdrop_loss(back, labels, alpha=1.0)[0])


def test_symmetric_kl_is_never_negative_and_exact_near_zero():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(64, 10_000))
    b = a + 1e-4 * rng.normal(size=a.shape)
    found = symmetric_kl(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    a, b = np.float32(a).astype(np.float64), np.float32(b).astype(np.float64)
    la = a - np.log(np.exp(a).sum(-1, keepdims=True))
    lb = b - np.log(np.exp(b).sum(-1, keepdims=True))
    exact = 0.5 * ((np.exp(la) - np.exp(lb)) * (la - lb)).sum(-1)
    assert np.all(np.asarray(found) >= 0)
    np.testing.assert_allclose(found, exact, rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_labels_in_8_bits(dtype):
    classes = 256 if dtype == jnp.uint8 else 120
    logits, labels = example(classes=classes)
    loss, _ = rdrop_loss(logits, labels.astype(dtype), alpha=1.0)
    wide, _ = rdrop_loss(logits, labels, alpha=1.0)
    assert float(loss) == float(wide)


@pytest.mark.parametrize(
    ("divergence", "k"), [("symmetric_kl", 2), *((name, 3) for name in DIVERGENCES)]
)
def test_classes_excluded_by_a_large_number_are_excluded(divergence, k):
    """Whatever the divergence and the number of passes, as without these classes."""
    least = jnp.finfo(jnp.float32).min
    logits, labels = example(k=k, classes=6)
    labels = labels % 4
    options = {"alpha": 2.0, "label_smoothing": 0.1, "divergence": divergence}
    loss, _ = rdrop_loss(logits.at[..., 4:].set(least), labels, **options)
    wanted, _ = rdrop_loss(logits[..., :4], labels, **options)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


@pytest.mark.usefixtures("no_shape_types")
def test_masks_may_be_lists():
    logits, labels = example(positions=2)
    found, _ = rdrop_loss(logits, labels.tolist(), alpha=1.0, where=[True, False])
    wanted, _ = rdrop_loss(logits[:, :1], labels[:1], alpha=1.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.usefixtures("no_shape_types")
def test_numpy_comes_in_as_it_is():
    logits, labels, _ = make(0, 2, 5, 4)
    where = np.array([True, False, True, True, True])
    loss, _ = rdrop_loss(logits, labels, alpha=1.0, where=where)
    as_jax = rdrop_loss(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(labels),
        alpha=1.0,
        where=jnp.asarray(where),
    )[0]
    np.testing.assert_allclose(loss, as_jax, rtol=1e-6)


def test_bernoulli_curvature_where_passes_agree():
    z = jnp.array([[0.3, -0.4]])
    hessian = jax.jit(jax.hessian(lambda a: bernoulli_symmetric_kl(a, z)[0]))(z)
    p = jax.nn.sigmoid(z[0])
    np.testing.assert_allclose(
        np.diag(hessian[0, :, 0]), np.diag(np.diag(p * (1 - p))), rtol=1e-5
    )


def test_multilabel_equals_two_class_softmax():
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 2, (3, 4)))
    loss, metrics = rdrop_multilabel_loss(z, y, alpha=2.0)
    pairs = jnp.stack([jnp.zeros_like(z), z], -1)
    ce, s = 0.0, 0.0
    for label in range(4):
        _, part = rdrop_loss(pairs[:, :, label], y[:, label], alpha=1.0)
        ce, s = ce + 2 * part["ce"].compute(), s + part["kl"].compute()
    np.testing.assert_allclose(loss, ce + 2.0 * s, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"].compute(), s, rtol=1e-5)


def test_multilabel_with_infinite_logits():
    z = jnp.array([[[jnp.inf, -jnp.inf, 0.5]]] * 2)
    y = jnp.array([[1, 0, 1]])
    loss, grad = jax.jit(
        jax.value_and_grad(lambda z: rdrop_multilabel_loss(z, y, alpha=1.0)[0])
    )(z)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(grad))
    one = jnp.array([[jnp.inf, 0.0]])
    assert np.isposinf(bernoulli_symmetric_kl(one, jnp.zeros((1, 2)))[0])
    assert np.isnan(rdrop_multilabel_loss(z, y.at[0, 0].set(2), alpha=1.0)[0])


def test_regression_sums_over_outputs():
    rng = np.random.default_rng(0)
    y1, y2, y = rng.normal(size=(3, 4, 2))
    loss, _ = rdrop_regression_loss(
        jnp.asarray(np.stack([y1, y2]), jnp.float32), jnp.asarray(y), alpha=0.5
    )
    squares = (y1 - y) ** 2 + (y2 - y) ** 2 + 0.5 * (y1 - y2) ** 2
    np.testing.assert_allclose(loss, squares.sum(1).mean(), rtol=1e-5)


def test_targets_fixed_keep_the_value_and_drop_half_the_gradient():
    logits, labels = example()

    def s(z, **options):
        nothing = jnp.zeros(5)
        return rdrop_loss(z, labels, alpha=1.0, label_weight=nothing, **options)[0]

    np.testing.assert_allclose(s(logits), s(logits, stop_gradient="targets"), rtol=1e-5)
    grad = jax.grad(s)(logits, divergence="forward_kl", stop_gradient="targets")
    assert not np.any(grad[0])
    assert np.any(grad[1])
    p, q = (np.asarray(jax.nn.softmax(z)) for z in logits)
    np.testing.assert_allclose(grad[1], (q - p) / 5, rtol=1e-4, atol=1e-6)


def test_kl_is_zero_where_both_passes_agree_on_impossible_classes():
    a = jnp.array([[0.0, -jnp.inf, 1.0]])
    assert float(kl_divergence(a, a)[0]) == 0.0


BAD = {
    "alpha must be >= 0: found -1": {"alpha": -1.0},
    "alpha must be >= 0: found nan": {"alpha": float("nan")},
    "alpha must be >= 0: found -2.0": {"alpha": np.float32(-2)},
    "label_smoothing must be in [0, 1): found 1.0": {"label_smoothing": 1.0},
    "smoothing must be one of ('uniform', 'fairseq'): found 'none'": {
        "smoothing": "none"
    },
    "objective_scale must be one of ('sum', 'mean'): found 'avg'": {
        "objective_scale": "avg"
    },
    "divergence must be one of": {"divergence": "l2"},
    "with stop_gradient='targets'": {
        "divergence": "squared",
        "stop_gradient": "targets",
    },
    "stop_gradient must be 'none' or 'targets': found 'both'": {
        "stop_gradient": "both"
    },
    "where must be boolean (True keeps): found float32": {"where": jnp.ones(5)},
    "where must have one entry per position, shape (5,): found (4,)": {
        "where": jnp.ones(4, bool)
    },
    "weight must have one entry per position, shape (5,): found (5, 4)": {
        "weight": jnp.ones((5, 4))
    },
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.usefixtures("no_shape_types")
def test_bad_arguments_are_named(message):
    logits, labels = example()
    with pytest.raises(ValueError, match=r".*") as error:
        rdrop_loss(logits, labels, **{"alpha": 1.0} | BAD[message])
    assert message in str(error.value)


@pytest.mark.usefixtures("no_shape_types")
def test_shapes_that_do_not_fit_are_named():
    logits, labels = example()
    with pytest.raises(ValueError, match=r"found labels \(4,\), logits \(2, 5, 4\)"):
        rdrop_loss(logits, labels[:4], alpha=1.0)
    with pytest.raises(ValueError, match=r"shape \(5,\) of one pass .* \(2, 5, 4\)"):
        rdrop_loss(logits, jnp.zeros((2, 5), int), alpha=1.0)  # labels twice
    with pytest.raises(ValueError, match=r"labels \(5, 3\), logits \(2, 5, 4\)"):
        rdrop_loss(logits, jnp.ones((5, 3)), alpha=1.0)
    with pytest.raises(ValueError, match=r"at least 2 axes: found shape \(4,\)"):
        rdrop_loss(logits[0, 0], labels, alpha=1.0)
    with pytest.raises(ValueError, match=r"found \(5, 1\) and \(5,\)"):
        rdrop_regression_loss(jnp.ones((2, 5, 1)), jnp.ones(5), alpha=1.0)
    with pytest.raises(ValueError, match=r"found \(5,\) and \(5, 1\)"):
        rdrop_regression_loss(jnp.ones((2, 5)), jnp.ones((5, 1)), alpha=1.0)
    with pytest.raises(ValueError, match="same shape"):
        symmetric_kl(jnp.ones((5, 4)), jnp.ones((5, 3)))


def test_config_checks_accept_the_named_divergences():
    assert tuple(terms._DIVERGENCES) == options.DIVERGENCES
