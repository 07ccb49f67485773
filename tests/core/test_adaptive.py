"""The adaptive softmax's objective against exact values and the full distribution."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rdrop_jax import adaptive_rdrop_loss, rdrop_loss
from rdrop_jax.training.mesh import make_mesh

CASES = json.loads((Path(__file__).parents[1] / "golden_cases.json").read_text())
CASE = CASES["adaptive_softmax_lm"]
HEAD, TAILS, ROWS = 4, (3, 5), 6  # words of the head and of two tails


def golden():
    """Logits as hidden states, under kernels that change nothing."""
    hidden = [jnp.asarray([CASE[f"{x}_a"], CASE[f"{x}_b"]]) for x in ("head", "tail")]
    kernels = [jnp.eye(x.shape[-1]) for x in hidden]
    return hidden, kernels, jnp.asarray(CASE["targets"])


def make(passes=2):
    rng = np.random.default_rng(5)
    widths = (6, 4, 3)
    words = (HEAD + len(TAILS), *TAILS)
    hidden = [rng.normal(size=(passes, ROWS, w)) for w in widths]
    kernels = [rng.normal(size=(v, w)) for v, w in zip(words, widths, strict=True)]
    labels = rng.integers(0, HEAD + sum(TAILS), ROWS)
    weight = rng.uniform(0.5, 1.5, ROWS)
    where = np.array([True, True, False, True, True, True])
    hidden, kernels = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), (hidden, kernels)
    )
    options = {"weight": jnp.asarray(weight, jnp.float32), "where": jnp.asarray(where)}
    return hidden, kernels, jnp.asarray(labels), options


def full_log_p(hidden, kernels):
    """Log probabilities of all words, [passes, rows, words]."""
    head, *tails = (
        jax.nn.log_softmax(h @ k.T, -1) for h, k in zip(hidden, kernels, strict=True)
    )
    words = head.shape[-1] - len(tails)
    parts = [head[..., :words]]
    parts += [head[..., words + i, None] + x for i, x in enumerate(tails)]
    return jnp.concatenate(parts, -1)


def assert_close(found, wanted, rtol=1e-5):
    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())

    jax.tree.map(check, found, wanted)


def test_gold_cluster_equals_the_published_form():
    wanted = CASE["expected"]["reference_per_cluster_alpha1"]
    with jax.enable_x64(True):
        hidden, kernels, labels = golden()

        def total(hidden):
            loss, metrics = adaptive_rdrop_loss(
                hidden,
                kernels,
                labels,
                alpha=1.0,
                divergence="gold_cluster",
                denominators=(jnp.ones(()), jnp.ones(())),
            )
            return loss, metrics

        gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
        (loss, metrics), (d_head, d_tail) = gradient(hidden)
        np.testing.assert_allclose(loss, wanted["sum_loss"], rtol=1e-10)
        np.testing.assert_allclose(metrics["kl"].total, wanted["half_sym_kl"])
        np.testing.assert_allclose(2 * metrics["ce"].total, wanted["ce"])
        for found, name in ((d_head, "head"), (d_tail, "tail")):
            expected = [wanted[f"grad_{name}_{x}"] for x in "ab"]
            np.testing.assert_allclose(found, expected, atol=1e-10)


def test_exact_divergence_of_each_row():
    with jax.enable_x64(True):
        hidden, kernels, labels = golden()
        for row, wanted in enumerate(CASE["expected"]["exact_half_sym_kl"]):
            _, metrics = adaptive_rdrop_loss(
                [h[:, row : row + 1] for h in hidden],
                kernels,
                labels[row : row + 1],
                alpha=1.0,
            )
            np.testing.assert_allclose(metrics["kl"].compute(), wanted, rtol=1e-10)


def test_all_words_sum_to_one():
    hidden, kernels, *_ = make()
    np.testing.assert_allclose(
        jnp.sum(jnp.exp(full_log_p(hidden, kernels)), -1), 1.0, rtol=1e-6
    )


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("chunk_size", [4, 6, 100])
def test_equals_the_loss_of_the_full_distribution(passes, chunk_size):
    """Value, metrics, and gradients in hidden states and kernels."""
    hidden, kernels, labels, options = make(passes)
    options["alpha"] = 2.0 if passes == 2 else 0.0

    def ours(hidden, kernels):
        return adaptive_rdrop_loss(
            hidden, kernels, labels, chunk_size=chunk_size, **options
        )

    def full(hidden, kernels):
        return rdrop_loss(full_log_p(hidden, kernels), labels, **options)

    both = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    (loss, metrics), gradients = jax.jit(both(ours))(hidden, kernels)
    found = jax.jit(both(full))(hidden, kernels)
    (wanted, wanted_metrics), wanted_gradients = found
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(ours)(hidden, kernels)[0], wanted, rtol=1e-5)
    for name in ("ce", "kl"):
        found, expected = metrics[name].compute(), wanted_metrics[name].compute()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert_close(gradients, wanted_gradients)


@pytest.mark.parametrize("divergence", ["exact", "gold_cluster"])
def test_nearly_equal_passes_lose_no_digits(divergence):
    """In float32, where a logarithm's rounding is larger than the divergence."""
    hidden, kernels, labels, _ = make(1)
    rng = np.random.default_rng(6)
    hidden = [
        np.concatenate([h, h + 1e-4 * rng.normal(size=h.shape)]).astype(np.float32)
        for h in hidden
    ]

    def kl(dtype):
        return float(
            adaptive_rdrop_loss(
                [jnp.asarray(h, dtype) for h in hidden],
                [jnp.asarray(np.asarray(k), dtype) for k in kernels],
                labels,
                alpha=1.0,
                divergence=divergence,
            )[1]["kl"].compute()
        )

    found = kl(jnp.float32)
    with jax.enable_x64(True):
        exact = kl(jnp.float64)
    assert 0 < exact < 1e-7
    np.testing.assert_allclose(found, exact, rtol=1e-2)


@pytest.mark.parametrize("tails", [0, 1, 2])
def test_gold_cluster_equals_its_formula(tails):
    """Value and gradients: the head's divergence, and that of the label's tail."""
    hidden, kernels, _, options = make()
    hidden, kernels = hidden[: tails + 1], kernels[: tails + 1]
    labels = jnp.array([0, HEAD - 1, 0, HEAD, HEAD + TAILS[0] - 1, HEAD + TAILS[0]])
    if tails < 2:
        labels = jnp.minimum(labels, len(kernels[0]) - 1)

    def ours(hidden, kernels):
        return adaptive_rdrop_loss(
            hidden, kernels, labels, alpha=2.0, divergence="gold_cluster", **options
        )[0]

    def formula(hidden, kernels):
        log_p = [
            jax.nn.log_softmax(h @ k.T) for h, k in zip(hidden, kernels, strict=True)
        ]
        start, words = 0, [len(kernels[0]) - tails, *map(len, kernels[1:])]
        s = 0.0
        for part, size in zip(log_p, words, strict=True):
            p, q = part
            each = jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), -1) / 2
            inside = (labels >= start) & (labels < start + size)
            s += jnp.where(inside | (start == 0), each, 0.0)
            start += size
        nll = -jnp.take_along_axis(
            full_log_p(hidden, kernels), labels[None, :, None], -1
        )[..., 0]
        w = options["weight"] * options["where"]
        return jnp.sum(w * (jnp.sum(nll, 0) + 2.0 * s)) / jnp.sum(w)

    found, wanted = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, kernels) for f in (ours, formula)
    )
    assert_close(found, wanted)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int16])
def test_labels_of_few_bits(dtype):
    rng = np.random.default_rng(7)
    hidden = [jnp.asarray(rng.normal(size=(2, 3, w)), jnp.float32) for w in (4, 2)]
    kernels = [
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((301, 4), (9, 2))
    ]
    labels = jnp.array([0, 127, 100], dtype)
    found = adaptive_rdrop_loss(hidden, kernels, labels, alpha=1.0)[0]
    wanted = adaptive_rdrop_loss(hidden, kernels, labels.astype(int), alpha=1.0)[0]
    assert found == wanted


def test_float16_kernels_lose_no_rare_words():
    """The gradient of a word of small probability, in a mean over many positions."""
    rng = np.random.default_rng(8)
    hidden = [jnp.asarray(rng.normal(size=(1, 4, 8)), jnp.float32)]
    kernel = jnp.asarray(rng.normal(0, 0.1, (4000, 8)), jnp.float16)
    scale = jnp.asarray(8192.0)

    def gradient(kernel):
        return jax.grad(
            lambda h: adaptive_rdrop_loss(
                h, [kernel], jnp.arange(4), alpha=0.0, denominators=(scale, scale)
            )[0]
        )(hidden)[0]

    np.testing.assert_allclose(
        gradient(kernel), gradient(kernel.astype(jnp.float32)), rtol=1e-4
    )


def test_gradient_in_weights_equals_that_of_the_full_distribution():
    hidden, kernels, labels, options = make()

    def ours(weight, label_weight):
        given = options | {"weight": weight, "label_weight": label_weight}
        return adaptive_rdrop_loss(
            hidden, kernels, labels, alpha=2.0, chunk_size=4, **given
        )[0]

    def full(weight, label_weight):
        given = options | {"weight": weight, "label_weight": label_weight}
        log_p = full_log_p(hidden, kernels)
        return rdrop_loss(log_p, labels, alpha=2.0, **given)[0]

    at = (options["weight"], jnp.linspace(0.5, 1.0, ROWS))
    found, wanted = (jax.jit(jax.grad(f, (0, 1)))(*at) for f in (ours, full))
    assert_close(found, wanted)


def test_a_mesh_of_one_axis():
    hidden, kernels, labels, _ = make()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.jit, static_argnums=2)
    def loss(hidden, kernels, mesh):
        return adaptive_rdrop_loss(hidden, kernels, labels, alpha=1.0, mesh=mesh)[0]

    found, wanted = (loss(hidden, kernels, m) for m in (mesh, None))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("axes", [{"fsdp": 2}, {"tensor": 2}])
def test_devices_change_nothing_and_share_no_row(axes):
    hidden, kernels, labels, options = make()
    mesh = make_mesh(data=3, devices=jax.devices()[:6], **axes)
    by_rows = NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))

    def loss(hidden, kernels, mesh):
        found = adaptive_rdrop_loss(
            hidden, kernels, labels, alpha=0.7, chunk_size=2, mesh=mesh, **options
        )
        return found[0], found

    grad = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
    expected = grad(hidden, kernels, None)
    placed = jax.device_put(hidden, by_rows)
    assert_close(grad(placed, kernels, mesh), expected)
    program = grad.lower(placed, kernels, mesh).compile().as_text()
    assert "all-gather" not in program
    assert "all-reduce" in program


def test_masked_rows_may_hold_anything():
    hidden, kernels, labels, options = make()
    bad = [h.at[:, 2].set(jnp.nan) for h in hidden]

    def loss(hidden, kernels, labels):
        return adaptive_rdrop_loss(hidden, kernels, labels, alpha=2.0, **options)[0]

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    found = run(bad, kernels, labels.at[2].set(-5))
    assert_close(found[1][1], run(hidden, kernels, labels)[1][1], 1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize("label", [-1, 12])
def test_a_label_out_of_range_gives_nan(label):
    """In the gradient, too: what is trained on nonsense should be seen."""
    hidden, kernels, labels, _ = make()
    labels = labels.at[0].set(label)

    def loss(hidden):
        return adaptive_rdrop_loss(hidden, kernels, labels, alpha=1.0)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    assert np.isnan(value)
    for g in gradient:
        assert np.isnan(g[:, 0]).all()
        assert np.isfinite(g[:, 1:]).all()


def test_infinite_logits_are_not_hidden():
    hidden, kernels, labels, _ = make(1)
    kernels = [jnp.abs(k) for k in kernels]
    loss, _ = adaptive_rdrop_loss(
        [jnp.full_like(hidden[0], -jnp.inf), *hidden[1:]], kernels, labels, alpha=0.0
    )
    assert not np.isfinite(loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "js"}, "divergence must be one of"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"hidden": [jnp.zeros((2, ROWS, 6))]}, "for the head and each tail"),
        ({"labels": jnp.zeros(3, int)}, "1 or 2 passes"),
        ({"kernels": [jnp.zeros((2, 6)), jnp.zeros((3, 4)), jnp.zeros((5, 3))]}, "row"),
        (
            {"kernels": [jnp.zeros((6, 6)), jnp.zeros((0, 4)), jnp.zeros((5, 3))]},
            "at least one token",
        ),
        (
            {"kernels": [jnp.zeros((6, 5)), jnp.zeros((3, 4)), jnp.zeros((5, 3))]},
            "width",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message, no_shape_types):
    hidden, kernels, labels, _ = make()
    given = {"hidden": hidden, "kernels": kernels, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        adaptive_rdrop_loss(alpha=1.0, **given)
