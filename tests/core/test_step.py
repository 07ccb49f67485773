"""The train step: what it equals, what it counts, what it refuses."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import toy
from jax.sharding import AxisType, PartitionSpec

from rdrop_jax import (
    forward_passes,
    init_state,
    make_eval_step,
    make_train_step,
    rdrop_loss,
)
from rdrop_jax.core.accumulate import make_loss_and_grad
from rdrop_jax.core.metrics import compute, mean, merge
from rdrop_jax.core.train_step import _averaged
from rdrop_jax.training.mesh import make_mesh, shard_batch, state_shardings

TX, KEY = optax.adam(1e-2), jax.random.key(0)


def start(**options):
    return init_state(toy.params(), TX, jax.random.key(0), **options)


def run(forward=toy.forward, steps=3, rows=8, batch=None, state=None, **options):
    options = {"alpha": 2.0} | options
    step = jax.jit(make_train_step(forward, TX, toy.loss, **options))
    state = start() if state is None else state
    for t in range(steps):
        state, metrics = step(
            state, toy.batch(rows, seed=t) if batch is None else batch
        )
    return state, compute(metrics)


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_step_is_the_loss_its_gradient_and_one_update():
    state, batch = start(), toy.batch()
    keys = jax.random.split(jax.random.fold_in(state.key, 0), 2)

    def loss_fn(params):
        z = jnp.stack([toy.forward(params, batch, keys[i]) for i in (0, 1)])
        return rdrop_loss(z, batch["label"], alpha=2.0, where=batch["where"])[0]

    loss, grads = jax.jit(jax.value_and_grad(loss_fn))(state.params)
    updates, _ = TX.update(grads, state.opt_state, state.params)
    wanted = optax.apply_updates(state.params, updates)
    new, metrics = run(steps=1)
    assert_trees_close(new.params, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    assert int(new.step) == 1


@pytest.mark.parametrize("scale", ["sum", "mean"])
def test_unroll_equals_vmap(scale):
    a, _ = run(how="unroll", objective_scale=scale)
    b, _ = run(how="vmap", objective_scale=scale)
    assert_trees_close(a.params, b.params, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accum_steps", [2, 4])
def test_accumulation_equals_the_full_batch(accum_steps):
    options = {"forward": toy.plain_forward, "num_passes": 2}
    full, full_metrics = run(**options)
    parts, part_metrics = run(**options, accum_steps=accum_steps)
    assert_trees_close(full.params, parts.params, rtol=1e-5, atol=1e-6)
    for name in full_metrics:
        np.testing.assert_allclose(
            part_metrics[name], full_metrics[name], rtol=1e-5, atol=1e-6
        )


def test_scalars_are_in_every_microbatch():
    def forward(params, batch, key):
        return toy.plain_forward(params, batch, key) * batch["scale"]

    batch = toy.batch() | {"scale": jnp.float32(0.5)}
    options = {"forward": forward, "num_passes": 2, "batch": batch}
    full, _ = run(**options)
    parts, _ = run(**options, accum_steps=2)
    assert_trees_close(full.params, parts.params, rtol=1e-5, atol=1e-6)


def test_accumulation_weighs_microbatches_by_what_they_hold():
    """With all padding in one microbatch, means of microbatch means would be wrong."""
    batch = toy.batch() | {"where": jnp.arange(8) % 2 == 0}
    options = {"forward": toy.plain_forward, "num_passes": 2, "batch": batch}
    full, _ = run(**options)
    parts, _ = run(**options, accum_steps=2)
    assert_trees_close(full.params, parts.params, rtol=1e-5, atol=1e-6)


def test_accumulation_weighs_both_terms_by_the_whole_batch():
    """A divergence without chance, and uneven masks and label weights."""

    def loss(z, batch, **objective):
        pair = jnp.concatenate([z, 2.0 * z])  # s > 0 although the passes agree
        return rdrop_loss(
            pair,
            batch["label"],
            where=batch["where"],
            weight=batch["weight"],
            label_weight=batch["labelled"],
            **objective,
        )

    rng = np.random.default_rng(0)
    batch = toy.batch() | {
        "weight": jnp.asarray(rng.random(8), jnp.float32),
        "labelled": jnp.asarray(rng.random(8), jnp.float32),
    }
    tx = optax.sgd(0.1)
    results = []
    for accum_steps in (1, 2, 4):
        step = make_train_step(
            toy.plain_forward,
            tx,
            loss,
            alpha=2.0,
            num_passes=1,
            accum_steps=accum_steps,
        )
        state = init_state(toy.params(), tx, jax.random.key(0))
        state, metrics = jax.jit(step)(state, batch)
        results.append((state.params, compute(metrics)))
    assert results[0][1]["kl"] > 0.01
    for params, metrics in results[1:]:
        assert_trees_close(params, results[0][0], rtol=1e-5, atol=1e-6)
        for name, value in results[0][1].items():
            assert metrics[name] == pytest.approx(value, rel=1e-5)


def test_swapping_keys_changes_nothing():
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(keys):
        def run(params):
            z = forward_passes(toy.forward, params, toy.batch(), keys)
            return rdrop_loss(z, toy.batch()["label"], alpha=2.0)[0]

        return jax.value_and_grad(run)(toy.params())

    loss = jax.jit(loss)
    (a, a_grad), (b, b_grad) = loss(keys), loss(keys[::-1])
    np.testing.assert_allclose(a, b, rtol=1e-6)
    assert_trees_close(a_grad, b_grad, rtol=1e-5, atol=1e-6)


def test_ema_and_state_must_agree():
    for ema, kept in ((0.9, False), (0.0, True)):
        with pytest.raises(ValueError, match="but the state keeps"):
            run(ema=ema, state=start(ema=kept))


def test_microbatches_draw_their_own_masks():
    twice = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), toy.batch(4))
    a, _ = run(batch=twice, accum_steps=2, steps=1)
    b, _ = run(batch=toy.batch(4), steps=1)
    assert np.any(np.abs(a.params["in"] - b.params["in"]) > 1e-6)


def test_alpha_zero_equals_plain_training_exactly():
    rdrop, metrics = run(alpha=0.0)
    state = start()
    for t in range(3):
        batch = toy.batch(seed=t)

        def loss_fn(params, batch=batch, state=state):
            key = jax.random.split(jax.random.fold_in(state.key, state.step), 1)[0]
            logits = toy.forward(params, batch, key)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return jnp.sum(ce * batch["where"]) / jnp.sum(batch["where"])

        grads = jax.jit(jax.grad(loss_fn))(state.params)
        updates, opt_state = TX.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = replace(state, step=state.step + 1, params=params, opt_state=opt_state)
    assert_trees_close(rdrop.params, state.params, rtol=1e-5, atol=1e-6)
    assert metrics["kl"] == 0.0


def test_alpha_zero_runs_one_pass_unless_told():
    calls = []

    def forward(params, batch, key):
        calls.append(key)
        return toy.forward(params, batch, key)

    for alpha, num_passes, expected in [
        (0.0, None, 1),
        (0.0, 2, 2),
        (1.0, None, 2),
        (1.0, 3, 3),
        (lambda step: 0.0 * step, None, 2),
    ]:
        calls.clear()
        step = make_train_step(
            forward, TX, toy.loss, alpha=alpha, num_passes=num_passes, how="unroll"
        )
        jax.eval_shape(step, start(), toy.batch())
        assert len(calls) == expected


def test_alpha_may_follow_a_schedule():
    ramp = optax.linear_schedule(0.0, 2.0, 1)
    first, _ = run(alpha=ramp, steps=1)
    without, _ = run(alpha=0.0, num_passes=2, steps=1)
    assert_trees_close(first.params, without.params, rtol=1e-6, atol=1e-7)
    later, _ = run(alpha=ramp, steps=1, state=replace(start(), step=jnp.int32(5)))
    full, _ = run(alpha=2.0, steps=1, state=replace(start(), step=jnp.int32(5)))
    assert_trees_close(later.params, full.params, rtol=1e-6, atol=1e-7)


def test_mean_scale_divides_the_whole_objective():
    _, total = run(steps=1)
    _, mean_ = run(steps=1, objective_scale="mean")
    np.testing.assert_allclose(mean_["loss"], total["loss"] / 2, rtol=1e-6)
    np.testing.assert_allclose(mean_["ce"], total["ce"], rtol=1e-6)
    np.testing.assert_allclose(mean_["kl"], total["kl"], rtol=1e-6)


def test_randomness_is_a_function_of_seed_and_step():
    straight, _ = run(steps=4)
    half, _ = run(steps=2)
    step = jax.jit(make_train_step(toy.forward, TX, toy.loss, alpha=2.0))
    for t in (2, 3):
        half, _ = step(half, toy.batch(seed=t))
    jax.tree.map(np.testing.assert_array_equal, straight.params, half.params)
    np.testing.assert_array_equal(
        jax.random.key_data(straight.key), jax.random.key_data(start().key)
    )


def test_views_are_those_of_forward_passes():
    """The only noise of this step is that of the inputs."""

    def view(batch, key):
        return batch | {"x": batch["x"] + jax.random.normal(key, batch["x"].shape)}

    _, metrics = run(toy.plain_forward, steps=1, views=view)
    assert metrics["kl"] > 0
    key = jax.random.fold_in(start().key, 0)
    batch = toy.batch(8, seed=0)
    logits = forward_passes(toy.plain_forward, toy.params(), batch, key, views=view)
    np.testing.assert_allclose(
        metrics["loss"], toy.loss(logits, batch, alpha=2.0)[0], rtol=1e-5
    )


def test_ema_follows_the_parameters():
    state, _ = run(steps=1, state=start(ema=True), ema=0.9)
    wanted = jax.tree.map(
        lambda old, new: 0.9 * old + 0.1 * new, toy.params(), state.params
    )
    assert_trees_close(state.ema_params, wanted, rtol=1e-6)
    state, _ = run(steps=1)
    assert state.ema_params is None


def half(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


def test_ema_of_half_precision_parameters_moves():
    """Steps of 0.001 from 1 towards 2 round to nothing in bfloat16."""
    state = init_state({"x": jnp.ones(3, jnp.bfloat16)}, TX, KEY, ema=True)
    assert state.ema_params["x"].dtype == jnp.float32
    average, new = state.ema_params, {"x": jnp.full(3, 2, jnp.bfloat16)}
    follow = jax.jit(lambda average: _averaged(average, new, 0.999))
    for _ in range(100):
        average = follow(average)
    np.testing.assert_allclose(average["x"], 2 - 0.999**100, rtol=1e-5)


def test_half_precision_gradients_add_up_in_float32():
    def gradient(accum_steps):
        grad = make_loss_and_grad(
            lambda params, batch, keys: jnp.stack(
                [toy.plain_forward(params, batch, None)] * 2
            ),
            toy.loss,
            alpha=1.0,
            objective_scale="sum",
            accum_steps=accum_steps,
        )
        keys = jax.random.split(KEY)
        given = (half(toy.params()), toy.batch(512), keys, jnp.int32(0))
        return jax.jit(grad)(*given)[1]

    for found, wanted in zip(
        *(jax.tree.leaves(gradient(n)) for n in (128, 1)), strict=True
    ):
        assert found.dtype == jnp.bfloat16
        difference = jnp.linalg.norm((found - wanted).astype(jnp.float32))
        assert difference <= 4e-3 * jnp.linalg.norm(wanted.astype(jnp.float32))


def test_optimizers_are_told_the_loss():
    tx = optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1))
    step = jax.jit(make_train_step(toy.forward, tx, toy.loss, alpha=2.0))
    state = init_state(toy.params(), tx, KEY)
    state, metrics = step(state, toy.batch())
    assert float(state.opt_state[1].best_value) == compute(metrics)["loss"]


@pytest.mark.skipif(
    jax.__version_info__ < (0, 7),
    reason="jax 0.6 cannot select by a random mask on Explicit axes",
)
@pytest.mark.parametrize("accum_steps", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_steps_on_an_explicit_mesh(accum_steps):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    wanted, _ = run(rows=16, steps=1, accum_steps=accum_steps)
    options = {"alpha": 2.0, "accum_steps": accum_steps}
    step = jax.jit(make_train_step(toy.forward, TX, toy.loss, **options))
    with jax.set_mesh(mesh):
        batch = jax.device_put(
            toy.batch(16, seed=0), jax.NamedSharding(mesh, jax.P("data"))
        )
        state = jax.device_put(start(), jax.NamedSharding(mesh, jax.P()))
        state, _ = step(state, batch)
    assert_trees_close(state.params, wanted.params, rtol=1e-5, atol=1e-6)


def test_first_bad_step_is_the_first():
    state, _ = run(steps=2)
    assert int(state.first_bad_step) == -1
    bad = toy.batch() | {"x": jnp.full((8, 5), jnp.nan)}
    state, _ = run(steps=3, batch=bad, state=state)
    assert int(state.first_bad_step) == 2


@pytest.mark.parametrize(
    ("accum_steps", "every"),
    [(2, 2), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_eight_devices_equal_one(accum_steps, every):
    parts = {"accum_steps": accum_steps, "every": every}
    options = {"forward": toy.forward, "rows": 16} | parts
    single, single_metrics = run(**options)
    for shape in ((8, 1, 1), (2, 2, 2)):
        mesh = make_mesh(*shape)
        state = start()
        rules = [("in", PartitionSpec(None, "tensor"))]
        placed = jax.device_put(state, state_shardings(mesh, state, rules))
        step = jax.jit(make_train_step(toy.forward, TX, toy.loss, alpha=2.0, **parts))
        for t in range(3):
            batch = jax.tree.map(np.asarray, toy.batch(16, seed=t))
            placed, metrics = step(placed, shard_batch(mesh, batch))
        assert_trees_close(placed.params, single.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            compute(metrics)["loss"], single_metrics["loss"], rtol=1e-5
        )


def test_one_all_reduce_without_accumulation():
    mesh = make_mesh()
    state = jax.device_put(start(), state_shardings(mesh, start()))
    batch = shard_batch(mesh, jax.tree.map(np.asarray, toy.batch(16)))
    step = jax.jit(make_train_step(toy.forward, TX, toy.loss, alpha=2.0))
    text = step.lower(state, batch).compile().as_text()
    ops = ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    counts = {op: text.count(f" {op}(") for op in ops}
    assert counts["all-reduce"] >= 1
    assert sum(counts.values()) == counts["all-reduce"], counts


def test_eval_step_runs_one_pass_without_dropout():
    def metrics(logits, batch):
        hit = jnp.argmax(logits, -1) == batch["label"]
        return {"accuracy": mean(hit.astype(jnp.float32), where=batch["where"])}

    step = jax.jit(make_eval_step(toy.forward, metrics))
    a, b = (step(toy.params(), toy.batch(seed=s)) for s in (0, 1))
    both = compute(merge(a, b))["accuracy"]
    logits = [toy.forward(toy.params(), toy.batch(seed=s), None) for s in (0, 1)]
    hits = sum(
        int(
            (
                (jnp.argmax(z, -1) == toy.batch(seed=s)["label"]) & toy.batch()["where"]
            ).sum()
        )
        for s, z in enumerate(logits)
    )
    assert both == pytest.approx(hits / 12)


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_rdrop_on_every_third_step(accum_steps):
    """Steps 0 and 3 are those of R-Drop; `kl` is the mean over these."""
    options = {"accum_steps": accum_steps, "alpha": 2.0}
    mixed = jax.jit(make_train_step(toy.forward, TX, toy.loss, every=3, **options))
    full = jax.jit(make_train_step(toy.forward, TX, toy.loss, **options))
    state = start()
    for t in range(5):
        batch = toy.batch(seed=t)
        after, metrics = mixed(state, batch)
        if t % 3 == 0:
            wanted, same = full(state, batch)
            assert_trees_close(after.params, wanted.params, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(metrics["kl"].total, same["kl"].total, rtol=1e-6)
            assert float(metrics["kl"].weight) > 0
        else:
            assert (float(metrics["kl"].total), float(metrics["kl"].weight)) == (0, 0)
        state = after


def test_plain_steps_between_are_those_of_one_pass():
    def loss_of(params, state, batch):
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 2)
        z = toy.forward(params, batch, keys[0])[None]
        return rdrop_loss(z, batch["label"], alpha=0.0, where=batch["where"])[0]

    tx = optax.sgd(0.1)
    step = make_train_step(toy.forward, tx, toy.loss, alpha=2.0, every=2)
    state, batch = init_state(toy.params(), tx, jax.random.key(0)), toy.batch()
    state, _ = step(state, batch)
    grads = jax.jit(jax.grad(loss_of))(state.params, state, batch)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    state, _ = step(state, batch)
    assert_trees_close(state.params, wanted, rtol=1e-5, atol=1e-6)


def test_bad_options_are_named():
    for options, message in [
        ({"alpha": -1.0}, "alpha must be >= 0: found -1.0"),
        ({"num_passes": 0}, "num_passes must be at least 1: found 0"),
        ({"every": 0}, "every must be at least 1: found 0"),
        ({"accum_steps": 0}, "accum_steps must be at least 1: found 0"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\): found 1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_train_step(toy.forward, TX, toy.loss, **{"alpha": 1.0} | options)
    for count in (1, 3):
        with pytest.raises(ValueError, match=f"each of 2 passes: found {count}"):
            make_train_step([toy.forward] * count, TX, toy.loss, alpha=1.0)
    with pytest.raises(
        ValueError, match="accum_steps=3 must divide the batch: found 8"
    ):
        run(accum_steps=3)
