"""Messages and guards of the library: alpha, passes, metrics, parameters, donation."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy

import rdrop_jax
from rdrop_jax import Mean, init_state, make_train_step, rdrop_loss
from rdrop_jax.core.passes import EqualPassesWarning

TX, KEY = optax.adam(1e-2), jax.random.key(0)
LOGITS, LABELS = jnp.arange(24.0).reshape(2, 4, 3) % 5, jnp.arange(4) % 3


def of_class_ids(z, **options):
    return rdrop_loss(z, LABELS, **options)


def of_probabilities(z, **options):
    return rdrop_loss(z, jax.nn.one_hot(LABELS, 3), **options)


def regression(z, **options):
    return rdrop_jax.rdrop_regression_loss(z, jnp.ones((4, 3)), **options)


def multilabel(z, **options):
    return rdrop_jax.rdrop_multilabel_loss(z, jnp.ones((4, 3)), **options)


def large_vocabulary(z, **options):
    return rdrop_jax.large_vocab_rdrop_loss(z, jnp.eye(3), LABELS, **options)


def adaptive(z, **options):
    return rdrop_jax.adaptive_rdrop_loss([z], [jnp.eye(3)], LABELS, **options)


LOSSES = [
    of_class_ids,
    of_probabilities,
    regression,
    multilabel,
    large_vocabulary,
    adaptive,
]


def test_a_mean_is_read_as_a_number():
    found = Mean(jnp.float32(3.0), jnp.float32(4.0))
    assert float(found) == 0.75
    assert f"{found:.3f} {found:>6.1f}" == "0.750    0.8"
    assert found.item() == 0.75
    assert (round(found, 1), round(found)) == (0.8, 1)
    assert f"{found}" == str(found)
    assert np.asarray(found) == 0.75
    assert jnp.asarray(found) == 0.75
    assert np.asarray(found, np.float64).dtype == np.float64
    assert float(Mean(jnp.float32(0.0), jnp.float32(0.0))) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_one_pass_needs_alpha_zero(loss):
    with pytest.raises(
        ValueError, match=r"alpha must be 0 for one pass.*Run the model"
    ):
        loss(LOGITS[:1], alpha=1.0)
    value, metrics = loss(LOGITS[:1], alpha=0.0)
    assert np.isfinite(value)
    assert float(metrics["kl"]) == 0.0


BAD_ALPHA = {
    "found a function. Call the schedule, alpha=schedule\\(step\\)": lambda step: 1.0,
    "a number >= 0: found None": None,
    "a number >= 0: found '1'": "1",
    "a scalar: found shape \\(2,\\)": jnp.ones(2),
    ">= 0: found -0.5": -0.5,
    "finite: found inf": float("inf"),
}


@pytest.mark.parametrize("message", BAD_ALPHA)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_alpha_that_is_no_weight(loss, message):
    with pytest.raises(ValueError, match=f"alpha must be .*{message}"):
        loss(LOGITS, alpha=BAD_ALPHA[message])


@pytest.mark.parametrize("alpha", [None, "1", -1.0])
@pytest.mark.usefixtures("no_shape_types")
def test_the_step_names_a_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be"):
        make_train_step(toy.forward, TX, toy.loss, alpha=alpha)


def test_a_negative_traced_alpha_gives_nan():
    loss = jax.jit(lambda alpha: rdrop_loss(LOGITS, LABELS, alpha=alpha)[0])
    assert np.isnan(loss(-1.0))
    wanted = rdrop_loss(LOGITS, LABELS, alpha=1.0)[0]
    np.testing.assert_allclose(loss(1.0), wanted, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.usefixtures("no_shape_types")
def test_concatenated_passes_name_the_reshape(loss):
    """Rows [x; x]: with labels once, and with labels twice."""
    with pytest.raises(ValueError, match=r"\.reshape\(2, 4, 3\)"):
        loss(jnp.ones((8, 3)), alpha=1.0)
    with pytest.raises(ValueError, match=r"\.reshape\(2, 2, 3\).*\[:2\]"):
        loss(jnp.ones((4, 3)), alpha=1.0)


@pytest.mark.usefixtures("no_shape_types")
def test_concatenated_passes_of_sequences_and_of_scalars():
    with pytest.raises(ValueError, match=r"logits\.reshape\(2, 4, 5, 3\)"):
        rdrop_loss(jnp.ones((8, 5, 3)), jnp.zeros((4, 5), int), alpha=1.0)
    with pytest.raises(ValueError, match=r"predictions\.reshape\(2, 4\)"):
        rdrop_jax.rdrop_regression_loss(jnp.ones(8), jnp.ones(4), alpha=1.0)


def without(*names, plain=False):
    def loss(z, batch, **objective):
        total, metrics = toy.loss(z, batch, **objective)
        kept = {k: m for k, m in metrics.items() if k not in names}
        return total, {k: m.compute() for k, m in kept.items()} if plain else kept

    return loss


@pytest.mark.parametrize(
    ("options", "loss", "message"),
    [
        ({"every": 2}, without("ce", "kl"), r"without \['kl'\]"),
        ({"accum_steps": 2}, without("ce"), r"without \['ce'\]"),
        ({"accum_steps": 2}, without(plain=True), "Return rdrop_jax.Mean"),
        ({"every": 2}, without(plain=True), "Return rdrop_jax.Mean"),
        ({}, lambda z, batch, **objective: z.mean(), "found .*Tracer"),
        ({}, lambda z, batch, **objective: (z.mean(), 1.0), "metrics of float"),
    ],
)
def test_metrics_that_the_step_cannot_use(options, loss, message):
    step = make_train_step(toy.forward, TX, loss, alpha=1.0, **options)
    with pytest.raises(ValueError, match=f"loss must return .*{message}"):
        jax.eval_shape(step, init_state(toy.params(), TX, KEY), toy.batch())


def test_metrics_are_free_where_the_step_adds_none_up():
    step = make_train_step(toy.forward, TX, without("ce", "kl"), alpha=1.0)
    _, metrics = jax.eval_shape(step, init_state(toy.params(), TX, KEY), toy.batch())
    assert set(metrics) == {"loss", "grad_norm"}


@pytest.mark.parametrize("tx", [TX, optax.contrib.schedule_free_sgd(0.1)])
def test_a_donated_state_leaves_the_arrays_that_it_was_made_of(tx):
    params, key = toy.params(), jax.random.key(7)
    before = jax.tree.map(np.asarray, params)
    state = init_state(params, tx, key, ema=True)
    leaves = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
    made_of = [*jax.tree.leaves(params), key]
    assert not {id(x) for x in leaves} & {id(x) for x in made_of}
    assert len({id(x) for x in leaves}) == len(leaves)
    jax.jit(lambda state: jax.tree.map(lambda x: x, state), donate_argnums=0)(state)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert not key.is_deleted()


def test_one_array_at_two_places_can_be_donated():
    w = jnp.ones((3, 3))
    state = init_state({"a": w, "b": w}, optax.sgd(0.1), KEY)
    assert state.params["a"] is not state.params["b"]


def test_an_equinox_module_is_told_to_be_split():
    model = eqx.nn.MLP(5, 3, 4, 1, key=KEY)
    with pytest.raises(
        ValueError, match=r"found \w+ at params\.activation.*eqx\.partition"
    ):
        init_state(model, TX, KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def forward(params, batch, key):
        del key
        return jax.vmap(eqx.combine(params, static))(batch["x"])

    state = init_state(params, TX, KEY)
    step = make_train_step(forward, TX, toy.loss, alpha=1.0)
    state, _ = jax.eval_shape(step, state, toy.batch())
    whole = rdrop_jax.TrainState(state.step, {"a": jnp.arange(3)}, (), KEY, state.step)
    with pytest.raises(ValueError, match="found int32 at params"):
        jax.eval_shape(step, whole, toy.batch())


@pytest.mark.parametrize(
    ("forward", "options", "wanted"),
    [
        (toy.plain_forward, {"check_passes": True}, [EqualPassesWarning]),
        # A forward for each pass.
        ((toy.plain_forward, toy.forward), {"check_passes": True}, []),
        pytest.param(
            toy.plain_forward,
            {"check_passes": True, "accum_steps": 2},
            [EqualPassesWarning],
            marks=pytest.mark.slow,
        ),
        pytest.param(toy.plain_forward, {}, [], marks=pytest.mark.slow),
    ],
)
def test_equal_passes_are_reported_at_step_0(forward, options, wanted):
    tx = optax.sgd(0.1)
    step = jax.jit(make_train_step(forward, tx, toy.loss, alpha=1.0, **options))
    state = init_state(toy.params(), tx, KEY)
    found = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state, _ = step(state, toy.batch())
            jax.effects_barrier()
        found.append([w.category for w in caught])
    assert found == [wanted, []]


@pytest.mark.parametrize("rate", [0.5, np.float64(0.5)])
def test_dropout_keeps_the_type_of_its_input(rate):
    found = rdrop_jax.dropout(KEY, jnp.ones(9, jnp.bfloat16), rate)
    assert found.dtype == jnp.bfloat16


def test_norms_of_half_precision_gradients_do_not_overflow():
    def forward(params, batch, key):
        return toy.forward(params, batch, key).astype(jnp.float32) * 1000

    params = jax.tree.map(lambda x: x.astype(jnp.float16), toy.params())
    step = make_train_step(forward, optax.sgd(1e-6), toy.loss, alpha=0.0)
    state, metrics = step(init_state(params, optax.sgd(1e-6), KEY), toy.batch())
    assert 256 < float(metrics["grad_norm"]) < np.inf  # 256^2 is infinite in float16
    assert metrics["grad_norm"].total.dtype == jnp.float32
    assert int(state.first_bad_step) == -1


def test_a_wide_alpha_keeps_the_type_of_the_loss():
    with jax.enable_x64(True):
        loss, _ = rdrop_loss(
            jnp.asarray(LOGITS, jnp.float32),
            jnp.asarray(LABELS),
            alpha=jnp.float64(1.0),
            divergence="js",
        )
        assert loss.dtype == jnp.float32


@pytest.mark.usefixtures("no_shape_types")
def test_label_smoothing_as_an_array():
    wanted = rdrop_loss(LOGITS, LABELS, alpha=1.0, label_smoothing=0.25)[0]
    found = rdrop_loss(LOGITS, LABELS, alpha=1.0, label_smoothing=jnp.float32(0.25))[0]
    assert found == wanted


REFUSED = {
    r"views: expected one, or one per pass, 1: found 2": lambda: make_train_step(
        toy.forward, TX, toy.loss, alpha=0.0, views=[None, None]
    ),
    r"views: expected one, or one per pass, 2: found 3": lambda: (
        rdrop_jax.forward_passes(toy.forward, {}, {}, KEY, views=[None, None, None])
    ),
    r"key must be a PRNG key.*: found 0": lambda: init_state({}, TX, 0),
    r"kernel must be \[width, vocab\].*: found \(3,\)": lambda: (
        rdrop_jax.large_vocab_rdrop_loss(LOGITS, jnp.ones(3), LABELS, alpha=1.0)
    ),
    r"kernels must be \[tokens, width\] each: found \[\(3,\)\]": lambda: (
        rdrop_jax.adaptive_rdrop_loss([LOGITS], [jnp.ones(3)], LABELS, alpha=1.0)
    ),
    r"labels must be class ids, integers: found float32": lambda: (
        rdrop_jax.adaptive_rdrop_loss(
            [LOGITS], [jnp.eye(3)], LABELS.astype(jnp.float32), alpha=1.0
        )
    ),
    r"tied must be one bool, or one per side: found \(True,\)": lambda: (
        rdrop_jax.large_vocab_consistency(
            *[rdrop_jax.LinearOutput(LOGITS[0], jnp.eye(3))] * 2, tied=(True,)
        )
    ),
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.usefixtures("no_shape_types")
def test_what_is_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()
