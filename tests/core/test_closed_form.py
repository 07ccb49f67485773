"""The closed form against autodiff of the same formula, whole and in chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chunk_sizes import set_sizes
from jax.test_util import check_grads

from rdrop_jax import rdrop_loss, rdrop_terms, softmax_cross_entropy, symmetric_kl
from rdrop_jax.core.kernels import chunking, class_ids
from rdrop_jax.core.kernels.clusters import clusters_objective
from rdrop_jax.core.kernels.softmax import SoftmaxOptions, rows_objective
from rdrop_jax.core.metrics import Pair
from rdrop_jax.training.mesh import make_mesh, shard_batch

ROWS, CLASSES = 56, 7


@pytest.fixture(params=["whole", "chunks"], scope="module")
def chunks(request):
    """Runs tests without the loop, and with chunks of 3 of each device's 7 rows."""
    own = ROWS // jax.device_count()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "chunks":
            sizes = {"softmax_whole": 0, "softmax_logits": 2 * CLASSES}
            set_sizes(patch, **sizes, softmax_rows=1)
            assert (own, chunking.softmax_rows(own, CLASSES)) == (7, 3)
        else:
            assert chunking.softmax_rows(own, CLASSES) == own
        jax.clear_caches()
        yield
    jax.clear_caches()


def example(passes=2, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (passes, ROWS, CLASSES))
    labels = rng.integers(0, CLASSES, ROWS)
    dead = rng.random((ROWS, CLASSES)) < 0.2
    dead[np.arange(ROWS), labels] = False
    logits[:, dead] = -np.inf
    weights = {
        "where": jnp.asarray(rng.random(ROWS) < 0.8),
        "weight": jnp.asarray(rng.random(ROWS), dtype),
        "label_weight": jnp.asarray(rng.random(ROWS) * (rng.random(ROWS) < 0.7), dtype),
    }
    return jnp.asarray(logits, dtype), jnp.asarray(labels), weights


def by_autodiff(logits, labels, *, alpha, **options):
    ce, s = rdrop_terms(logits, labels, **options)
    return ce.compute() + alpha * s.compute()


def by_closed_form(logits, labels, **options):
    return rdrop_loss(logits, labels, **options)[0]


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize(
    ("label_smoothing", "smoothing"),
    [(0.0, "uniform"), (0.1, "uniform"), (0.1, "fairseq")],
)
def test_value_and_gradients_equal_autodiff(passes, label_smoothing, smoothing):
    options = {"label_smoothing": label_smoothing, "smoothing": smoothing, "alpha": 3.0}
    with jax.enable_x64(True):
        logits, labels, weights = example(passes, jnp.float64)

        def both(f):
            def loss(logits, weight, label_weight, alpha):
                given = {"weight": weight, "label_weight": label_weight}
                given |= {"where": weights["where"], **options, "alpha": alpha}
                return f(logits, labels, **given)

            given = (weights["weight"], weights["label_weight"], jnp.float64(3.0))
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(logits, *given)

        found, wanted = both(by_closed_form), both(by_autodiff)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
            found,
            wanted,
        )
        assert np.any(found[1][0])


@pytest.mark.usefixtures("chunks")
def test_every_kind_of_derivative_works():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        logits = jnp.asarray(rng.normal(size=(2, ROWS, 3)))
        labels = jnp.asarray(rng.integers(0, 3, ROWS))

        @jax.jit
        def loss(z):
            z = jnp.asarray(z)
            return by_closed_form(z, labels, alpha=2.0, label_smoothing=0.1)

        check_grads(loss, (logits,), order=2, modes=["fwd", "rev"])
        small = logits[:, :8]

        def hessian(f):
            def loss(z):
                return f(z, labels[:8], alpha=2.0, label_smoothing=0.1)

            return jax.jit(jax.hessian(loss))(small)

        np.testing.assert_allclose(
            hessian(by_closed_form), hessian(by_autodiff), rtol=1e-8, atol=1e-12
        )


@pytest.mark.usefixtures("chunks")
def test_half_precision_gradients_have_its_type():
    logits, labels, _ = example(dtype=jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda z: by_closed_form(z, labels, alpha=1.0)))
    grad, full = gradient(logits), gradient(logits.astype(jnp.float32))
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(grad.astype(jnp.float32), full, rtol=8e-3, atol=1e-6)


@pytest.mark.usefixtures("chunks")
def test_vmap_equals_a_loop():
    logits, labels, _ = example()
    pairs = jnp.stack([logits, logits[::-1] * 0.5])

    @jax.jit
    def grad(z):
        return jax.grad(by_closed_form)(z, labels, alpha=1.0)

    together = jax.jit(jax.vmap(grad))(pairs)
    for one, z in zip(together, pairs, strict=True):
        np.testing.assert_allclose(one, grad(z), rtol=1e-5, atol=1e-8)


def test_metrics_carry_no_gradient():
    logits, labels, _ = example()
    grad = jax.grad(lambda z: rdrop_loss(z, labels, alpha=1.0)[1]["kl"].compute())(
        logits
    )
    assert not np.any(grad)


@pytest.mark.usefixtures("chunks")
def test_parts_with_the_denominators_of_the_whole_add_up():
    logits, labels, weights = example()

    @jax.jit
    def loss(rows, denominators=None):
        z, y, weights = rows
        options = {"alpha": 2.0, "denominators": denominators}
        return rdrop_loss(z, y, **options, **weights)

    whole, metrics = loss((logits, labels, weights))
    both = (metrics["ce"].weight, metrics["kl"].weight)
    parts = [
        loss(
            (logits[:, rows], labels[rows], {n: x[rows] for n, x in weights.items()}),
            both,
        )[0]
        for rows in (slice(0, 24), slice(24, 56))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)


@pytest.mark.usefixtures("chunks")
def test_on_eight_devices_no_row_moves():
    logits, labels, _ = example()
    mesh = make_mesh()
    rows_first = {"z": np.asarray(logits).swapaxes(0, 1), "y": np.asarray(labels)}
    batch = shard_batch(mesh, rows_first)

    def loss(z, y):
        return by_closed_form(jnp.swapaxes(z, 0, 1), y, alpha=2.0, label_smoothing=0.1)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(batch["z"], batch["y"]).compile()
    text = compiled.as_text()
    for moves in ("all-gather", "all-to-all", "collective-permute"):
        assert f"{moves}(" not in text
    found = compiled(batch["z"], batch["y"])
    one = (jnp.asarray(x) for x in rows_first.values())
    wanted = jax.jit(jax.value_and_grad(loss))(*one)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8),
        found,
        wanted,
    )


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("explicit", [False, True])
def test_in_the_shard_map_and_on_the_mesh_of_others(explicit, request):
    """With jax's own defaults: check_vma=True, and meshes of explicit axes."""
    if not explicit:
        request.getfixturevalue("checked_shard_map")
    logits, labels, _ = example()
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("mine",), axis_types=(kind,))

    def whole(z, y):
        return by_closed_form(z, y, alpha=2.0, label_smoothing=0.1)

    def part(z, y):
        rows = jnp.float32(ROWS)
        loss = by_closed_form(
            z, y, alpha=2.0, label_smoothing=0.1, denominators=(rows, rows)
        )
        return jax.lax.psum(loss, "mine")

    specs = (jax.P(None, "mine"), jax.P("mine"))
    mapped = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=jax.P())
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, jax.NamedSharding(mesh, spec))
            for x, spec in zip((logits, labels), specs, strict=True)
        ]
        found = jax.jit(jax.value_and_grad(whole if explicit else mapped))(*placed)
    wanted = jax.jit(jax.value_and_grad(whole))(logits, labels)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("checked_shard_map")
@pytest.mark.parametrize("chunks", ["chunks"], indirect=True)
def test_in_a_shard_map_chunks_are_of_the_devices_own_rows(chunks, monkeypatch):
    rows = []

    def spy(logits, *args):
        rows.append(logits[0].shape[0])
        return rows_objective(logits, *args)

    monkeypatch.setattr(class_ids, "rows_objective", spy)
    jax.clear_caches()
    logits, labels, _ = example()
    mesh = make_mesh()
    axes = mesh.axis_names
    mapped = jax.shard_map(
        lambda z, y: jax.lax.psum(by_closed_form(z, y, alpha=1.0), axes),
        mesh=mesh,
        in_specs=(jax.P(None, axes), jax.P(axes)),
        out_specs=jax.P(),
    )
    jax.eval_shape(mapped, logits, labels)
    assert set(rows) == {3}


def test_float64_scales_beside_float32_logits():
    with jax.enable_x64(True):
        logits, labels, _ = example()
        alpha, one = jnp.float64(2.0), jnp.float64(ROWS)
        gradient = jax.grad(by_closed_form)(
            logits, labels, alpha=alpha, denominators=(one, one)
        )
    assert gradient.dtype == jnp.float32


@pytest.mark.parametrize("positions", [4096, 8 * 509])
def test_chunks_keep_scratch_small(monkeypatch, positions):
    """Against autodiff of the leanest plain formula, 64 times as much."""
    set_sizes(monkeypatch, softmax_logits=40_000, softmax_rows=4)
    logits = jax.ShapeDtypeStruct((2, positions, 10_000), jnp.float32)
    labels = jax.ShapeDtypeStruct((positions,), jnp.int32)

    def scratch(f):
        def loss(z, y):
            return f(z, y, alpha=1.0)

        compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def plain(z, y, alpha):
        log_p = jax.nn.log_softmax(z)
        p = jnp.exp(log_p)
        ce = -jnp.take_along_axis(log_p, y[None, :, None], -1)
        s = 0.5 * jnp.sum((p[0] - p[1]) * (log_p[0] - log_p[1]), -1)
        return 2 * jnp.mean(ce) + alpha * jnp.mean(s)

    assert scratch(by_closed_form) * 50 <= scratch(plain)


def test_nothing_is_nan_where_one_pass_excludes_a_class():
    logits = jnp.array([[[0.0, 1.0, 2.0]], [[0.0, -jnp.inf, 2.0]]])
    labels = jnp.array([0])

    def loss(z, alpha, **options):
        return rdrop_loss(z, labels, alpha=alpha, **options)[0]

    for divergence in ("symmetric_kl", "reverse_kl"):
        at_zero = jax.jit(lambda a, d=divergence: loss(logits, a, divergence=d))(0.0)
        assert np.isfinite(at_zero)
    for alpha in (0.0, 1.0):
        zero = jnp.zeros_like(logits)
        value, slope = jax.jvp(lambda z, a=alpha: loss(z, a), (logits,), (zero,))
        assert np.isfinite(value) if alpha == 0.0 else np.isposinf(value)
        assert float(slope) == 0.0
        assert np.all(np.isfinite(jax.grad(loss)(logits, alpha)))


def test_the_fused_terms_equal_the_plain_losses():
    logits, labels, _ = example()
    labels = labels.at[:3].set(jnp.array([-1, CLASSES, 100]))  # out of range: NaN
    all_count, one = Pair(*[jnp.ones(ROWS, bool)] * 2), Pair(*[jnp.ones(ROWS)] * 2)
    options = SoftmaxOptions(0.1, "fairseq")
    found, _ = rows_objective(list(logits), labels, all_count, one, options, False)
    smoothed = {"label_smoothing": 0.1, "smoothing": "fairseq"}
    ce = sum(softmax_cross_entropy(z, labels, **smoothed) for z in logits)
    np.testing.assert_allclose(found.ce, ce, rtol=1e-5)
    assert np.isnan(found.ce).tolist() == [True] * 3 + [False] * (ROWS - 3)
    np.testing.assert_allclose(found.kl, symmetric_kl(*logits), rtol=1e-4, atol=1e-6)


def test_the_fused_terms_of_clusters_equal_the_plain_losses():
    rng = np.random.default_rng(3)
    head, tail = (jnp.asarray(rng.normal(0, 2, (2, 9, n))) for n in (4, 5))
    labels = jnp.array([-1, 8, 0, 1, 2, 3, 5, 6, 7])  # 3 + 5 tokens
    log_head = jax.nn.log_softmax(head)
    log_tail = log_head[..., 3:] + jax.nn.log_softmax(tail)
    whole = jnp.concatenate([log_head[..., :3], log_tail], axis=-1)
    found, _ = clusters_objective(
        [list(head), list(tail)],
        labels,
        jnp.ones(9, bool),
        Pair(jnp.ones(9), jnp.ones(9)),
        exact=True,
    )
    ce = sum(softmax_cross_entropy(z, labels) for z in whole)
    np.testing.assert_allclose(found.ce, ce, rtol=1e-5)
    assert np.isnan(found.ce).tolist() == [True] * 2 + [False] * 7
    np.testing.assert_allclose(found.kl, symmetric_kl(*whole), rtol=1e-4)
