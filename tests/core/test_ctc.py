"""R-Drop for CTC against all alignments in plain numpy, and against CR-CTC."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from rdrop_jax import rdrop_ctc_loss

BATCH, FRAMES, CLASSES, LABELS = 3, 4, 3, 2
STATIC = ("frames", "objective_scale", "blank_id")
ctc_loss = jax.jit(rdrop_ctc_loss, static_argnames=STATIC)


def make(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (2, BATCH, FRAMES, CLASSES)).astype(np.float32)
    lengths, counts = np.array([4, 3, 4]), np.array([2, 2, 1])
    labels = np.array([[1, 2], [1, 1], [2, 0]])
    return (
        jnp.asarray(logits),
        jnp.asarray(np.arange(FRAMES) >= lengths[:, None], jnp.float32),
        jnp.asarray(labels),
        jnp.asarray(np.arange(LABELS) >= counts[:, None], jnp.float32),
    )


def collapsed(path):
    return [k for k, _ in itertools.groupby(path) if k != 0]


def by_alignments(logits, frames, labels):
    """Negative log of the summed probability of all paths that give the labels."""
    log_p = [reference.log_softmax(z) for z in np.asarray(logits)[:frames]]
    paths = itertools.product(range(CLASSES), repeat=frames)
    total = sum(
        np.exp(sum(log_p[t][k] for t, k in enumerate(path)))
        for path in paths
        if collapsed(path) == list(labels)
    )
    return -np.log(total)


def parts(logits, logit_paddings, labels, label_paddings):
    """CTC loss per pass and sequence, and s per frame, in float64."""
    frames = (np.asarray(logit_paddings) == 0).sum(1)
    words = [
        y[p == 0]
        for y, p in zip(np.asarray(labels), np.asarray(label_paddings), strict=True)
    ]
    ctc = [
        [by_alignments(z[b], frames[b], words[b]) for b in range(BATCH)] for z in logits
    ]
    of = reference.DIVERGENCES["symmetric_kl"]
    s = [
        [of(logits[0, b, t], logits[1, b, t]) for t in range(frames[b])]
        for b in range(BATCH)
    ]
    return np.array(ctc), s


@pytest.mark.parametrize("frames", ["sum", "mean"])
@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_loss_equals_the_sum_over_alignments(frames, scale):
    arguments = make()
    weight = jnp.array([1.0, 0.5, 2.0])
    loss, metrics = ctc_loss(
        *arguments, alpha=0.7, frames=frames, weight=weight, objective_scale=scale
    )
    ctc, s = parts(*arguments)
    w = np.array(weight)
    ce = (w * ctc.sum(0)).sum() / w.sum()
    numbers = sum(w[b] * sum(s[b]) for b in range(BATCH))
    lengths = [len(x) for x in s]
    kl = numbers / (w.sum() if frames == "sum" else (w * lengths).sum())
    factor = 1.0 if scale == "sum" else 0.5
    np.testing.assert_allclose(loss, factor * (ce + 0.7 * kl), rtol=1e-5)
    np.testing.assert_allclose(metrics["ce"].compute(), ce / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"].compute(), kl, rtol=1e-5)
    assert float(metrics["infeasible"]) == 0.0


def icefall(logits, logit_paddings, labels, label_paddings, weight):
    """Loss of one batch with summed frames, as forward_cr_ctc and train.py compute it:
    both halves attract each other through detached targets, then everything is halved.
    """
    ctc = ctc_loss(logits, logit_paddings, labels, label_paddings, alpha=0.0)
    log_p = jax.nn.log_softmax(logits.reshape(-1, *logits.shape[2:]))
    target = jax.lax.stop_gradient(jnp.roll(log_p, len(log_p) // 2, axis=0))
    kl = jnp.sum(jnp.exp(target) * (target - log_p), -1)
    kl = jnp.sum(kl * (1 - jnp.tile(logit_paddings, (2, 1))))
    return 0.5 * ctc[0] * logits.shape[1] + weight * 0.5 * kl


def test_equals_cr_ctc():
    """Published weight 0.2: alpha 0.4 here, times the batch size and 1/2."""
    logits, *others = make()

    def ours(z):
        loss, _ = ctc_loss(z, *others, alpha=0.4, objective_scale="mean")
        return loss * BATCH

    def theirs(z):
        return icefall(z, *others, 0.2)

    found, wanted = (jax.jit(jax.value_and_grad(f))(logits) for f in (ours, theirs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        wanted,
    )


def test_sequences_without_an_alignment_are_counted():
    logits, _, labels, label_paddings = make()
    short = jnp.asarray(np.arange(FRAMES) >= np.array([[1], [3], [4]]), jnp.float32)
    of = jax.jit(
        jax.value_and_grad(
            lambda z: ctc_loss(z, short, labels, label_paddings, alpha=0.4),
            has_aux=True,
        )
    )
    (loss, metrics), gradient = of(logits)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(metrics["infeasible"].compute(), 1 / 3)
    assert float(metrics["ce"].weight) == 2.0
    assert float(metrics["kl"].weight) == 3.0
    assert np.any(gradient[:, 0, 0])
    assert not np.any(gradient[:, 0, 1:])


def test_equal_neighbours_need_a_blank_between_them():
    logits, *_ = make()
    labels, keep = jnp.array([[1, 1], [1, 2], [1, 1]]), jnp.zeros((BATCH, LABELS))
    frames = jnp.asarray(np.arange(FRAMES) >= np.array([[2], [2], [3]]))
    _, metrics = ctc_loss(logits, frames, labels, keep, alpha=0.4)
    np.testing.assert_allclose(metrics["infeasible"].compute(), 1 / 3)


def test_masked_sequences_may_hold_anything():
    logits, logit_paddings, labels, label_paddings = make()
    where = jnp.array([True, False, True])
    padded = logit_paddings[None, :, :, None] == 1
    garbage = jnp.where(where[None, :, None, None] & ~padded, logits, jnp.nan)
    of = jax.jit(
        jax.value_and_grad(
            lambda z, y: ctc_loss(
                z, logit_paddings, y, label_paddings, alpha=0.4, where=where
            )[0]
        )
    )
    bad_labels = jnp.where(where[:, None], labels, -7)
    value, gradient = of(garbage, bad_labels)
    wanted, wanted_gradient = of(logits, labels)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-6)


def test_unlabelled_sequences_count_in_the_divergence_alone():
    arguments = make()
    _, metrics = ctc_loss(
        *arguments, alpha=0.4, label_weight=jnp.array([1.0, 0.0, 0.0])
    )
    ctc, s = parts(*arguments)
    np.testing.assert_allclose(metrics["ce"].compute(), ctc[:, 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(
        metrics["kl"].compute(), np.sum([sum(x) for x in s]) / BATCH, rtol=1e-5
    )


@pytest.mark.parametrize("label", [0, CLASSES, -1])
def test_a_label_that_is_no_class_gives_nan(label):
    logits, logit_paddings, labels, label_paddings = make()
    labels = labels.at[0, 0].set(label)
    loss, _ = ctc_loss(logits, logit_paddings, labels, label_paddings, alpha=0.4)
    assert np.isnan(loss)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_labels_may_have_a_type_smaller_than_the_number_of_classes(dtype):
    logits, logit_paddings, labels, label_paddings = make()
    excluded = jnp.full((*logits.shape[:-1], 300 - CLASSES), -jnp.inf)
    logits = jnp.concatenate([logits, excluded], -1)
    small, wide = (
        ctc_loss(logits, logit_paddings, x, label_paddings, alpha=0.4)[0]
        for x in (labels.astype(dtype), labels)
    )
    assert np.isfinite(small)
    assert small == wide


def test_another_blank_and_impossible_classes():
    """The last class as the blank; a class that both passes exclude."""
    logits, logit_paddings, labels, label_paddings = make()
    loss, _ = ctc_loss(logits, logit_paddings, labels, label_paddings, alpha=0.4)
    moved = jnp.roll(logits, -1, -1)
    excluded = jnp.concatenate([moved, jnp.full_like(moved[..., :1], -jnp.inf)], -1)
    of = jax.jit(
        jax.value_and_grad(
            lambda z: ctc_loss(
                z, logit_paddings, labels - 1, label_paddings, alpha=0.4, blank_id=2
            )[0]
        )
    )
    found, gradient = of(excluded)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[..., -1])


def test_bfloat16_is_computed_in_float32():
    logits, *others = make()
    short = logits.astype(jnp.bfloat16)
    loss, _ = ctc_loss(short, *others, alpha=0.4)
    wanted, _ = ctc_loss(short.astype(jnp.float32), *others, alpha=0.4)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": jnp.zeros((BATCH, FRAMES, CLASSES))}, "logits: expected"),
        ({"labels": jnp.zeros((BATCH, LABELS))}, "labels: expected class ids"),
        ({"logit_paddings": jnp.zeros((BATCH, 9))}, "logit_paddings: expected shape"),
        ({"label_paddings": jnp.zeros((BATCH, 9))}, "label_paddings: expected shape"),
        ({"blank_id": CLASSES}, "blank_id: expected a class id below 3, found 3"),
        ({"frames": "max"}, "frames: expected one of"),
    ],
)
def test_bad_input(change, message, no_shape_types):
    names = ("logits", "logit_paddings", "labels", "label_paddings")
    arguments = dict(zip(names, make(), strict=True)) | {"alpha": 0.4} | change
    with pytest.raises(ValueError, match=message):
        rdrop_ctc_loss(**arguments)
