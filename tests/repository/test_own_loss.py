"""The recipes of docs/own-loss.md run as printed."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rdrop_jax

PAGE = (Path(__file__).parents[2] / "docs" / "own-loss.md").read_text()
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", PAGE, re.DOTALL))
RNG = np.random.default_rng(0)
B, T, C = 4, 6, 3


def arrays(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def forward(params, batch, key):
    return batch["features"] @ params


TX = optax.sgd(0.1)
GIVEN = {
    "jax": jax,
    "jnp": jnp,
    "optax": optax,
    "rdrop_jax": rdrop_jax,
    "forward": forward,
    "tx": TX,
}
LABELS = jnp.asarray(RNG.integers(0, C, B))
TAGS = jnp.asarray(RNG.integers(0, C, (B, T)))
TEXT = jnp.arange(T)[None] < jnp.array([[6], [5], [4], [3]])
MATCHED = jnp.asarray(RNG.random((B, T)) < 0.7)


def code(name):
    names = dict(GIVEN)
    exec(BLOCKS[name], names)
    return names


def of_boxes(names, outputs, alpha):
    return alpha * names["detection_term"](outputs, {"matched": MATCHED})


# outputs, and the loss of the recipe as a function of them and of alpha
RECIPES = {
    "spans": (
        {"start": arrays(2, B, T), "end": arrays(2, B, T)},
        lambda names, outputs, alpha: names["span_loss"](
            outputs, {"text": TEXT, "start": LABELS, "end": LABELS}, alpha
        ),
    ),
    "contrastive": (
        arrays(2, B, C),
        lambda names, outputs, alpha: names["contrastive_loss"](outputs, alpha),
    ),
    "detection": (
        {"logits": arrays(2, B, T, C), "boxes": arrays(2, B, T, 4)},
        of_boxes,
    ),
    "fields": (
        arrays(2, B, T, T, C),
        lambda names, outputs, alpha: names["field_loss"](
            outputs, {"field": jnp.zeros((B, T, T, C))}, alpha
        ),
    ),
    "crf": (
        arrays(2, B, T, C),
        lambda names, outputs, alpha: names["crf_loss"](
            outputs, {"tags": TAGS}, jnp.zeros((C, C)), alpha
        ),
    ),
}


def test_every_recipe_is_run():
    assert set(BLOCKS) == {*RECIPES, "ctc", "distillation"}
    assert PAGE.count("```python") == len(BLOCKS)


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipe(name):
    """Different passes cost more with alpha, equal ones nothing."""
    outputs, loss = RECIPES[name]
    run = jax.jit(functools.partial(loss, code(name)), static_argnums=1)
    value, gradient = jax.value_and_grad(run)(outputs, 1.0)
    assert np.all([np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient)])
    assert float(value) > float(run(outputs, 0.0))
    if name != "contrastive":  # equal passes, but not a symmetric matrix
        equal = jax.tree.map(lambda z: jnp.stack([z[0], z[0]]), outputs)
        np.testing.assert_allclose(run(equal, 1.0), run(equal, 0.0), atol=1e-6)


def test_the_crf_without_transitions_is_a_softmax_per_token():
    outputs, _ = RECIPES["crf"]
    found = RECIPES["crf"][1](code("crf"), outputs, 2.0)
    logits = outputs.reshape(2, B * T, C)
    terms = rdrop_jax.rdrop_terms(logits, TAGS.reshape(-1))
    wanted = T * terms.ce.compute() + 2.0 * terms.kl.compute()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_the_crf_with_a_forbidden_transition_has_finite_gradients():
    outputs, _ = RECIPES["crf"]
    transitions = jnp.zeros((C, C)).at[:, 2].set(-1e4)
    loss = functools.partial(code("crf")["crf_loss"], alpha=1.0)
    tags = {"tags": jnp.where(TAGS == 2, 0, TAGS)}
    gradient = jax.grad(loss)(120.0 * outputs, tags, transitions)
    assert np.all(np.isfinite(gradient))


def test_the_student_learns_from_the_teacher():
    teacher = rdrop_jax.LinearOutput(arrays(B, 5), arrays(5, C))
    student = rdrop_jax.LinearOutput(arrays(B, 4), arrays(4, C))
    term = code("distillation")["distillation_term"]
    batch = {"where": jnp.ones(B, bool)}
    d_teacher, d_student = jax.grad(term, (0, 1))(teacher, student, batch)
    assert not np.any(d_teacher.kernel)
    assert np.any(d_student.kernel)


def test_the_ctc_recipe_trains():
    step = jax.jit(code("ctc")["step"])
    state = rdrop_jax.init_state(arrays(5, C), TX, jax.random.key(0))
    batch = {
        "features": arrays(B, T, 5),
        "frame_paddings": jnp.zeros((B, T)),
        "labels": jnp.ones((B, 2), int),
        "label_paddings": jnp.zeros((B, 2)),
    }
    state, metrics = step(state, batch)
    assert float(metrics["kl"]) > 0
    assert int(state.step) == 1
