"""Public functions on meshes of every axis type, inside and outside a mesh context."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rdrop_jax

BATCH, WIDTH, CLASSES = 16, 3, 4
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, BATCH, CLASSES)).astype(np.float32)
X = RNG.normal(size=(BATCH, WIDTH)).astype(np.float32)
W = RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32)
TAIL = RNG.normal(size=(2, 1)).astype(np.float32)
IDS = RNG.integers(0, CLASSES, BATCH)
PROBABILITIES = np.eye(CLASSES, dtype=np.float32)[IDS]
KEEP = np.arange(BATCH) % 5 != 1
KEY = jax.random.key(3)
TX = optax.sgd(0.1)


def of_loss(name, targets, **options):
    def run(z, batch):
        loss, metrics = getattr(rdrop_jax, name)(
            z, batch[targets], alpha=1.5, where=batch["keep"], **options
        )
        return loss, metrics

    return run, LOGITS


def of_positions(function):
    return lambda z, batch: (jnp.sum(function(z, batch)), ()), LOGITS


def of_terms(name, targets):
    def run(z, batch):
        ce, s = getattr(rdrop_jax, name)(z, batch[targets], where=batch["keep"])
        return ce.compute() + 2.0 * s.compute(), ()

    return run, LOGITS


def large_vocabulary(w, batch):
    hidden = jnp.stack([batch["x"], batch["x"] * 0.5])
    return rdrop_jax.large_vocab_rdrop_loss(
        hidden, w, batch["ids"], alpha=1.5, bias=w[0], where=batch["keep"], chunk_size=3
    )


def adaptive(w, batch):
    hidden = jnp.stack([batch["x"], batch["x"] * 0.5])
    return rdrop_jax.adaptive_rdrop_loss(
        [hidden, hidden[..., :1]],
        [w.T, jnp.asarray(TAIL)],
        batch["ids"],
        alpha=1.5,
        where=batch["keep"],
        chunk_size=3,
    )


def ctc(z, batch):
    """Sequences of two frames with one label, or none for the blank's id."""
    frames = jnp.stack([z, z * 0.5], axis=2)
    ids = batch["ids"][:, None]
    return rdrop_jax.rdrop_ctc_loss(
        frames, frames[0, ..., 0] > 99, ids, ids == 0, alpha=0.4, where=batch["keep"]
    )


def forward(w, batch, key):
    x = batch["x"]
    if key is not None:
        a, b = jax.random.split(key)
        x = rdrop_jax.layer_drop(a, x, rdrop_jax.dropout(b, x, 0.3), 0.2)
    return x @ w


def step_loss(z, batch, **objective):
    return rdrop_jax.rdrop_loss(z, batch["ids"], where=batch["keep"], **objective)


def passes(how):
    def run(w, batch):
        z = rdrop_jax.forward_passes(forward, w, batch, KEY, how=how)
        return step_loss(z, batch, alpha=1.5)

    return run, W


def train_step(**options):
    def run(w, batch):
        step = rdrop_jax.make_train_step(forward, TX, step_loss, alpha=1.5, **options)
        state = rdrop_jax.init_state(w, TX, KEY, ema="ema" in options)
        state, metrics = step(state, batch)
        return state.params, metrics

    return run, W


def eval_step(w, batch):
    step = rdrop_jax.make_eval_step(
        forward, lambda z, batch: step_loss(z[None], batch, alpha=0.0)[1]
    )
    metrics = step(w, batch)
    return metrics


# A step computes the gradient itself, and an evaluation none.
STEPS = {
    "train_step": train_step(),
    "accumulated": train_step(accum_steps=2),
    "alternating": train_step(every=2, ema=0.5, check_passes=True),
    "eval_step": (eval_step, W),
}
LOSSES = {
    "ids": of_loss("rdrop_loss", "ids", label_smoothing=0.1),
    "probabilities": of_loss("rdrop_loss", "probabilities"),
    "js": of_loss("rdrop_loss", "ids", divergence="js", label_smoothing=0.1),
    "targets": of_loss("rdrop_loss", "ids", stop_gradient="targets"),
    "regression": of_loss("rdrop_regression_loss", "probabilities"),
    "multilabel": of_loss("rdrop_multilabel_loss", "probabilities"),
    "rdrop_terms": of_terms("rdrop_terms", "ids"),
    "regression_terms": of_terms("regression_terms", "probabilities"),
    "multilabel_terms": of_terms("multilabel_terms", "probabilities"),
    "cross_entropy": of_positions(
        lambda z, b: rdrop_jax.softmax_cross_entropy(
            z[0], b["ids"], label_smoothing=0.1, where=b["keep"]
        )
    ),
    "bernoulli": of_positions(
        lambda z, b: rdrop_jax.bernoulli_cross_entropy(
            z[0], b["probabilities"], where=b["keep"]
        )
    ),
    "symmetric_kl": of_positions(
        lambda z, b: rdrop_jax.symmetric_kl(z[0], z[1], where=b["keep"])
    ),
    "consistency": (
        lambda z, b: (rdrop_jax.consistency(z, where=b["keep"]).compute(), ()),
        LOGITS,
    ),
    "ctc": (ctc, LOGITS),
    "large_vocabulary": (large_vocabulary, W),
    "adaptive": (adaptive, W),
    "unroll": passes("unroll"),
    "vmap": passes("vmap"),
}
CASES = {
    name: (jax.value_and_grad(run, has_aux=True), x)
    for name, (run, x) in LOSSES.items()
} | STEPS
TYPES = [("Explicit", True), ("Explicit", False), ("Auto", True), ("Auto", False)]
# All need minutes; these have a path through loops, scans or hand-written gradients.
QUICK = ("ids", "large_vocabulary", "adaptive", "accumulated")


def marked(ways, default):
    """Every case in every way; slow but for `QUICK` by default, "ids" in all ways."""
    found = []
    for name in CASES:
        for way in ways:
            quick = name == "ids" or (name in QUICK and way == default)
            marks = () if quick else pytest.mark.slow
            label = "-".join(map(str, way))
            found.append(pytest.param(name, *way, marks=marks, id=f"{name}-{label}"))
    return found


def batch():
    return {"x": X, "ids": IDS, "probabilities": PROBABILITIES, "keep": KEEP}


def context(mesh, entered):
    if not entered:
        return contextlib.nullcontext()
    return getattr(jax, "set_mesh", getattr(jax.sharding, "use_mesh", None))(mesh)


def placed(mesh, x, batch):
    over = P(None, "data") if x.shape == LOGITS.shape else P()
    x = jax.device_put(x, NamedSharding(mesh, over))
    return x, jax.device_put(batch, NamedSharding(mesh, P("data")))


def assert_equal(found, wanted):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        found,
        wanted,
    )


@pytest.mark.parametrize(
    ("case", "kind", "entered"), marked(TYPES, ("Explicit", False))
)
def test_sharded_batch(case, kind, entered):
    """Value, metrics and gradient are those of one device."""
    run, x = CASES[case]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType[kind],))
    with context(mesh, entered):
        args = placed(mesh, x, batch())
        found = jax.jit(run)(*args)
    assert_equal(found, jax.jit(run)(x, batch()))


@pytest.mark.parametrize("entered", [True, False])
def test_value_outside_jit(entered):
    """Constants, such as the number of positions, do not stay on one device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))

    def run(z, b):
        return rdrop_jax.rdrop_loss(z, b["ids"], alpha=1.5)

    with context(mesh, entered):
        found = run(*placed(mesh, LOGITS, batch()))
    wanted = jax.jit(run)(LOGITS, batch())
    np.testing.assert_allclose(found[0], wanted[0], rtol=2e-5)
    for name, value in wanted[1].items():
        assert float(found[1][name]) == pytest.approx(float(value), rel=2e-5)


@pytest.mark.parametrize(("case", "check"), marked([(True,), (False,)], (True,)))
def test_shard_map(case, check, request):
    """Each device's part of the batch is a batch of its own."""
    if check:
        request.getfixturevalue("checked_shard_map")
    run, x = CASES[case]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    stacked = np.stack(np.split(x, 8, 1)) if x is LOGITS else np.stack([x] * 8)
    parts = jax.tree.map(lambda v: np.stack(np.split(v, 8)), batch())

    def local(x, batch):
        found = run(*jax.tree.map(lambda v: v[0], (x, batch)))
        return jax.tree.map(lambda v: v[None], found)

    over = NamedSharding(mesh, P("data"))
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check
    )
    args = jax.device_put((stacked, parts), over)
    found = jax.jit(mapped)(*args)
    wanted = jax.jit(jax.vmap(run))(stacked, parts)
    assert_equal(found, wanted)


@pytest.mark.parametrize(
    "kind", ["Explicit", pytest.param("Auto", marks=pytest.mark.slow)]
)
def test_guard_reads_a_few_rows_of_a_sharded_batch(kind):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType[kind],))
    w, rows = placed(mesh, W, batch())
    rdrop_jax.check_stochastic(forward, w, rows, KEY)
    with pytest.raises(ValueError, match="two dropout keys give the same outputs"):
        rdrop_jax.check_stochastic(
            lambda w, batch, key: forward(w, batch, None), w, rows, KEY
        )


def test_results_are_sharded_like_logits_given_by_name():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    z = jax.device_put(LOGITS[0], NamedSharding(mesh, P("data")))
    y = jax.device_put(IDS, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        found = rdrop_jax.softmax_cross_entropy(labels=y, logits=z)
        wanted = rdrop_jax.softmax_cross_entropy(z, y)
    assert found.sharding == wanted.sharding
    np.testing.assert_array_equal(found, wanted)
