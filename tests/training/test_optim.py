"""Schedules at hand-computed steps, optimizers against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from rdrop_jax.cli.checks import CHECKS
from rdrop_jax.config import base_config
from rdrop_jax.models import adaptive, seq2seq
from rdrop_jax.models.sizes import Seq2SeqSize, Size
from rdrop_jax.training.optim import (
    layer_scales,
    make_alpha,
    make_optimizer,
    make_schedule,
)


def optimizer(**options):
    o = ConfigDict(base_config().optimizer.to_dict())
    with o.ignore_type():
        o.update(options)
    return o


def rates(total, steps, **options):
    schedule = make_schedule(optimizer(**options), total)
    return [float(jnp.asarray(schedule(jnp.int32(step)))) for step in steps]


@pytest.mark.parametrize(
    ("options", "steps", "wanted"),
    [
        ({"schedule": "constant"}, [0, 99], [1.0, 1.0]),
        ({"schedule": "constant", "warmup": 10}, [0, 5, 10, 99], [0.0, 0.5, 1.0, 1.0]),
        ({"schedule": "linear", "warmup": 20}, [10, 20, 60, 100], [0.5, 1.0, 0.5, 0.0]),
        (
            {"schedule": "polynomial", "power": 2.0, "end_lr": 0.2},
            [0, 50, 100],
            [1.0, 0.4, 0.2],
        ),
        ({"schedule": "cosine", "warmup": 20}, [20, 60, 100], [1.0, 0.5, 0.0]),
        ({"schedule": "cosine", "end_lr": 0.1}, [0, 50, 100], [1.0, 0.55, 0.1]),
        (  # fairseq: lr * sqrt(warmup / step)
            {"schedule": "inverse_sqrt", "warmup": 25, "warmup_init": 1e-7},
            [0, 25, 100, 2500],
            [1e-7, 1.0, 0.5, 0.1],
        ),
        (  # fairseq: periods 40, 80 at scales 1, 0.5
            {
                "schedule": "cosine_restarts",
                "period": 40,
                "period_mult": 2.0,
                "shrink": 0.5,
                "end_lr": 0.1,
            },
            [0, 20, 40, 80, 100],
            [1.0, 0.55, 0.5, 0.275, 0.05 + 0.225 * (1 - 0.5**0.5)],
        ),
    ],
)
def test_schedules(options, steps, wanted):
    total = 3000 if options["schedule"] == "inverse_sqrt" else 100
    found = rates(total + 20 * ("period" in options), steps, lr=1.0, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_every_allowed_name_builds():
    for name in CHECKS["optimizer.schedule"][1].removeprefix("one of ").split(", "):
        assert np.isfinite(rates(10, [3], schedule=name)[0])
    for name in CHECKS["optimizer.name"][1].removeprefix("one of ").split(", "):
        make_optimizer(optimizer(name=name), lambda step: 1e-3)
    with pytest.raises(ValueError, match="no schedule 'x'"):
        make_schedule(optimizer(schedule="x"), 10)
    with pytest.raises(ValueError, match="no optimizer 'x'"):
        make_optimizer(optimizer(name="x"), lambda step: 1e-3)


PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0, 4.0])}
GRADS = {"kernel": jnp.array([[0.3, 0.4]]), "bias": jnp.array([0.0, 0.0])}


def update(params=PARAMS, grads=GRADS, steps=1, lr=0.1, **options):
    tx = make_optimizer(optimizer(**options), lambda step: lr)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def test_weight_decay_is_decoupled_and_may_spare_vectors():
    zero = jax.tree.map(jnp.zeros_like, GRADS)
    every = update(grads=zero, weight_decay=0.5)
    np.testing.assert_allclose(every["kernel"], PARAMS["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_allclose(every["bias"], PARAMS["bias"] * 0.95, rtol=1e-6)
    some = update(grads=zero, weight_decay=0.5, decay="matrices")
    np.testing.assert_allclose(some["kernel"], PARAMS["kernel"] * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(some["bias"], PARAMS["bias"])


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_the_output_bias_of_pretrained_files_does_not_decay(decay):
    params = {"logits_bias": jnp.ones((1, 3)), "kernel": jnp.ones((1, 3))}
    tx = make_optimizer(optimizer(weight_decay=0.5, decay=decay), lambda step: 0.1)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    assert not updates["logits_bias"].any()
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)


def test_adamw_is_adam():
    adam, adamw = (update(name=n, weight_decay=0.1) for n in ("adam", "adamw"))
    jax.tree.map(np.testing.assert_array_equal, adam, adamw)


def test_adam_steps_by_the_learning_rate():
    new = update(name="adam")
    np.testing.assert_allclose(new["kernel"], PARAMS["kernel"] - 0.1, rtol=1e-5)


def test_momentum_and_nesterov():
    sgd, nag = (update(name=name, steps=2, momentum=0.5) for name in ("sgd", "nag"))
    g = np.asarray(GRADS["kernel"])
    np.testing.assert_allclose(
        sgd["kernel"], PARAMS["kernel"] - 0.1 * 2.5 * g, rtol=1e-5
    )
    np.testing.assert_allclose(
        nag["kernel"], PARAMS["kernel"] - 0.1 * (1.5 + 1.75) * g, rtol=1e-5
    )


def test_clipping_bounds_the_global_norm():
    new = update(name="sgd", clip=0.25)  # the norm of GRADS is 0.5
    np.testing.assert_allclose(
        new["kernel"], PARAMS["kernel"] - 0.1 * GRADS["kernel"] / 2, rtol=1e-5
    )


def test_alpha_warmup():
    assert make_alpha(5.0, 0) == 5.0
    assert make_alpha(0.0, 100) == 0.0
    ramp = make_alpha(5.0, 100)
    assert [float(ramp(t)) for t in (0, 50, 100, 500)] == [0.0, 2.5, 5.0, 5.0]


LAYERS = {
    "encoder": {
        "tokens": jnp.ones((2, 2)),
        "embedding_norm": {"bias": jnp.ones(2)},
        "block_0": {"mlp_in": {"kernel": jnp.ones((2, 2))}},
        "block_11": {"mlp_in": {"kernel": jnp.ones((2, 2))}},
    },
    "head": {"kernel": jnp.ones((2, 2))},
}


def test_layer_decay_slows_what_is_far_from_the_head():
    scales = layer_scales(LAYERS, 0.5)
    assert scales["encoder"]["tokens"] == 0.5**13
    assert scales["encoder"]["embedding_norm"]["bias"] == 0.5**13
    assert scales["encoder"]["block_0"]["mlp_in"]["kernel"] == 0.5**12
    assert scales["encoder"]["block_11"]["mlp_in"]["kernel"] == 0.5
    assert scales["head"]["kernel"] == 1.0


def factors(module, *inputs):
    """The factors of a model's parameters at decay 0.5, by the first part of a name."""
    make = functools.partial(module.init, train=False)
    shapes = jax.eval_shape(make, jax.random.key(0), *inputs)["params"]
    return {
        name: {*jax.tree.leaves(scales)}
        for name, scales in layer_scales(shapes, 0.5).items()
    }


@pytest.mark.parametrize("share", seq2seq.SHARE)
def test_layer_decay_counts_blocks_of_encoder_and_decoder(share):
    size = Seq2SeqSize(4, 2, 8, 2, 16)
    module = seq2seq.Seq2Seq(11, size, share=share, embedding_norm=True)
    tokens = jnp.zeros((1, 3), jnp.int32)
    found = factors(module, tokens, tokens > 0, tokens)
    assert found.pop("encoder") - {1.0} == {0.5, 0.25, 0.125, 0.0625}
    assert found.pop("decoder") - {1.0} == {0.5, 0.25}
    assert found.pop("output", {1.0}) == {1.0}
    assert {"embedding", "source_embed", "target_embed"} <= found.keys()
    assert all(x == {0.5**5} for x in found.values())


def test_layer_decay_knows_the_tables_of_an_adaptive_softmax():
    module = adaptive.AdaptiveDecoder(
        30, (10, 20), size=Size(2, 8, 2, 16), factor=2, positions="learned"
    )
    found = factors(module, jnp.zeros((1, 3), jnp.int32))
    assert found["place"] == {0.5**3}
    tables = [x for name, x in found.items() if name[-1].isdigit()]
    assert len(tables) == 6
    assert all(x == {0.5**3} for x in tables)
    assert found["classes"] == {1.0}


def test_layer_decay_scales_steps_and_weight_decay():
    o = optimizer(name="adam", layer_decay=0.5, weight_decay=0.1, decay="matrices")
    plain = optimizer(name="adam", weight_decay=0.1, decay="matrices")
    updates = []
    for each in (o, plain):
        tx = make_optimizer(each, lambda step: 0.1)
        updates.append(tx.update(LAYERS, tx.init(LAYERS), LAYERS)[0])
    wanted = jax.tree.map(lambda u, s: u * s, updates[1], layer_scales(LAYERS, 0.5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates[0], wanted
    )
