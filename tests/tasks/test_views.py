"""Views of the programs: images against numpy and PIL, tasks, devices, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import texts, tiny, tiny_lm, tiny_nmt, tiny_sum, toy
from PIL import Image

from rdrop_jax import config as config_lib
from rdrop_jax import flags, forward_passes, tasks
from rdrop_jax.cli import run
from rdrop_jax.core.dropout import hash_bits
from rdrop_jax.data.tokenizers import Special
from rdrop_jax.errors import InputError
from rdrop_jax.tasks import image_views
from rdrop_jax.tasks.image_classification.randaugment import (
    OPERATIONS as PIL_OPERATIONS,
)
from rdrop_jax.tasks.seq2seq import task as seq2seq_task
from rdrop_jax.training.mesh import make_mesh, shard_batch
from rdrop_jax.training.state import make_state, make_step, make_tx
from rdrop_jax.training.task import StepOptions, Task

KEY = jax.random.key(2)
SPECS = {
    "image_classification": (tiny.VIT, tiny.TINY),
    "text_classification": (f"{texts.GLUE}:files", texts.TINY),
    "translation": (tiny_nmt.NMT, tiny_nmt.TINY),
    "summarization": (f"{tiny_sum.SUMMARIZATION}:files", tiny_sum.TINY),
    "language_model": (f"{tiny_lm.LM}:files", tiny_lm.TINY),
    "adaptive": (f"{tiny_lm.LM}:files", tiny_lm.TINY | tiny_lm.ADAPTIVE),
}
CUTOFFS = ("token_cutoff", "feature_cutoff", "span_cutoff")
SEQ2SEQ = (*CUTOFFS, "simcut")
KINDS = {
    "image_classification": ("crop", "randaugment"),
    "text_classification": CUTOFFS,
    "translation": SEQ2SEQ,
    "summarization": SEQ2SEQ,
    "language_model": CUTOFFS,
    "adaptive": CUTOFFS,
}
NO_DROPOUT = {"model.dropout": "0", "model.attention_dropout": "0"}


def config(task, **fields):
    spec, given = SPECS[task]
    return flags.load(spec, given | {f"rdrop.{k}": str(v) for k, v in fields.items()})


def images(channels=3, count=4, size=8):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (count, size, size, channels)).astype(np.float32)


def image_view(channels=3, **fields):
    given = {
        "data.mean": "(0.5,)",
        "data.std": "(0.25,)",
        "data.channels": str(channels),
        "data.flip": "true",
    }
    spec, common = SPECS["image_classification"]
    fields = {f"rdrop.{k}": str(v) for k, v in fields.items()}
    return image_views.make_views(flags.load(spec, common | given | fields))


def normalized(levels):
    return ((levels / 255 - 0.5) / 0.25).astype(np.float32)


def test_crops_are_those_of_padded_images():
    """Of 8 pixels, 0.25 pads 2 on each side; half of the images are mirrored."""
    levels = images(count=40)
    view = image_view(views="crop", views_rate=0.25)
    found = jax.jit(view)({"image": jnp.asarray(normalized(levels))}, KEY)["image"]
    bits = np.asarray(hash_bits(jax.random.split(KEY)[0], (40, 3)))
    for image, level, (y, x, flip) in zip(found, levels, bits, strict=True):
        source = level[:, ::-1] if flip >= 2**31 else level
        padded = np.pad(
            normalized(source), ((2, 2), (2, 2), (0, 0)), constant_values=-2
        )
        y, x = y % 5, x % 5
        if flip >= 2**31:  # moves first, then mirrors
            x = 4 - x
        np.testing.assert_array_equal(image, padded[y : y + 8, x : x + 8])
    assert {*(bits[:, 0] % 5)} == {*(bits[:, 1] % 5)} == set(range(5))
    assert 10 < (bits[:, 2] >= 2**31).sum() < 30


@functools.cache
def operation(name, level):
    return jax.jit(lambda x, sign: image_views.OPERATIONS[name](x, level, sign))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.3, 0.9])
def test_operations_are_those_of_pil(channels, level):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(-9, 10, (16, 20, channels)), axis=1) + 120
    smooth = smooth.clip(10, 240).astype(np.uint8)
    picture = Image.fromarray(smooth[..., 0] if channels == 1 else smooth)
    names = list(image_views.OPERATIONS)
    names.insert(2, "equalize")
    for name, theirs in zip(names, PIL_OPERATIONS, strict=True):
        for sign in (1.0, -1.0):
            if name == "equalize":
                continue
            wanted = np.asarray(theirs(picture, level, sign)).reshape(smooth.shape)
            found = operation(name, level)(
                smooth[None].astype(np.float32), np.full((1, 1, 1, 1), sign, np.float32)
            )
            off = 1 if name == "autocontrast" else 0
            np.testing.assert_allclose(found[0], wanted, atol=off, err_msg=name)


def test_randaugment_applies_two_drawn_operations():
    levels = images(count=9)
    bits = hash_bits(KEY, (9, 2, 2))
    found = image_views.rand_augment(jnp.asarray(levels), bits, 0.5)
    drawn = np.asarray(bits)
    seen = set()
    for i in range(9):
        wanted = jnp.asarray(levels[i : i + 1])
        for number, sign in drawn[i]:
            name = list(image_views.OPERATIONS)[number % 13]
            seen.add(name)
            way = jnp.full((1, 1, 1, 1), 1.0 if sign >= 2**31 else -1.0)
            wanted = image_views.OPERATIONS[name](wanted, 0.5, way)
        np.testing.assert_allclose(found[i], wanted[0], atol=1)
    assert len(seen) > 5


@pytest.mark.parametrize("kind", ["crop", "randaugment"])
def test_views_of_images_differ_by_row_and_key_alone(kind):
    view = jax.jit(image_view(views=kind))
    same = np.repeat(images(count=1), 8, axis=0)
    batch = {"image": jnp.asarray(normalized(same)), "label": jnp.arange(8)}
    found = view(batch, KEY)
    assert found["image"].shape == same.shape
    assert len(np.unique(np.asarray(found["image"]), axis=0)) > 4
    np.testing.assert_array_equal(found["label"], batch["label"])
    np.testing.assert_array_equal(found["image"], view(batch, KEY)["image"])
    assert np.any(found["image"] != view(batch, jax.random.key(3))["image"])
    # On 8 devices, and the first rows alone.
    mesh = make_mesh(8, 1, 1)
    sharded = view(shard_batch(mesh, jax.tree.map(np.asarray, batch)), KEY)
    np.testing.assert_array_equal(sharded["image"], found["image"])
    few = view(jax.tree.map(lambda x: x[:3], batch), KEY)["image"]
    np.testing.assert_array_equal(few, found["image"][:3])


def example(shapes):
    """Inputs with lengths that fit, of the task of `tasks.abstract`."""
    batch = {k: np.ones(shape, dtype) for k, (shape, dtype) in shapes.items()}
    if "length" in batch:
        batch["length"] *= batch["tokens"].shape[1]
    return batch


def built(task, **fields):
    resolved = config_lib.resolve(config(task, **fields), 10.0)
    return resolved, *tasks.abstract(resolved)


@pytest.mark.parametrize("task", KINDS)
def test_the_model_takes_the_view(task):
    _, made, shapes = built(task, views=KINDS[task][0])
    batch = {k: jax.ShapeDtypeStruct(*x) for k, x in shapes.items()}

    def outputs(params, batch):
        return made.forward(params, made.step.views(batch, KEY), KEY)

    params = jax.eval_shape(made.init, KEY)
    assert jax.tree.leaves(jax.eval_shape(outputs, params, batch))


def test_the_step_runs_the_views_of_its_task():
    seen = []

    def view(batch, key):
        seen.append(key)
        return batch

    made = Task(
        init=lambda key: toy.params(),
        forward=toy.forward,
        loss=toy.loss,
        train_data=dict,
        scores=(),
        evaluators={},
        step=StepOptions(views=view),
    )
    resolved = config_lib.resolve(config("image_classification"), 10.0)
    tx = make_tx(resolved)
    state = make_state(made, tx, resolved)
    jax.eval_shape(make_step(made, tx, resolved), state, toy.batch())
    assert len(seen) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "kind"), [(task, kind) for task in KINDS for kind in KINDS[task]]
)
def test_every_view_reaches_the_step(task, kind):
    resolved, made, shapes = built(task, views=kind)
    tx = make_tx(resolved)
    state = jax.eval_shape(lambda: make_state(made, tx, resolved))
    batch = {k: jax.ShapeDtypeStruct(*x) for k, x in shapes.items()}
    _, metrics = jax.eval_shape(make_step(made, tx, resolved), state, batch)
    assert {"ce", "kl", "loss"} <= set(metrics)


@pytest.mark.parametrize("task", KINDS)
def test_without_views_the_step_is_the_paper_s(task):
    _, made, _ = built(task)
    assert made.step.views is None


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("text_classification", "token_cutoff"),
        *(
            pytest.param(task, kind, marks=pytest.mark.slow)
            for task in ("text_classification", "translation")
            for kind in ("feature_cutoff", "span_cutoff")
        ),
    ],
)
def test_passes_and_rows_differ_without_dropout(task, kind):
    spec, given = SPECS[task]
    fields = {"rdrop.views": kind, "rdrop.views_rate": "0.4"} | NO_DROPOUT
    resolved = config_lib.resolve(flags.load(spec, given | fields), 10.0)
    made, shapes = tasks.abstract(resolved)
    batch = jax.tree.map(jnp.asarray, example(shapes))
    params = made.init(KEY)
    run_all = jax.jit(
        lambda key: forward_passes(
            made.forward, params, batch, key, views=made.step.views, how="unroll"
        )
    )
    outputs = run_all(KEY)
    found = np.asarray(getattr(outputs, "hidden", outputs))
    found = found[0] if found.ndim > 4 else found
    assert np.any(found[0] != found[1])
    assert np.any(found[0][:1] != found[0])
    again = run_all(KEY)
    np.testing.assert_array_equal(getattr(again, "hidden", again), found)


def test_views_of_texts_are_the_same_on_8_devices():
    _, made, shapes = built("translation", views="span_cutoff", views_rate=0.5)
    batch = example(shapes)
    view = jax.jit(made.step.views)
    found = view(jax.tree.map(jnp.asarray, batch), KEY)
    sharded = view(shard_batch(make_mesh(8, 1, 1), batch), KEY)
    jax.tree.map(np.testing.assert_array_equal, sharded, found)
    assert found["keep"][:, 0].all()  # BOS
    assert found["src_keep"][:, -1].all()  # EOS of the longest sources
    assert not found["keep"].all()


def test_first_tokens_of_bart_are_not_cut():
    given = config("summarization", views="token_cutoff", views_rate=0.9)
    where = jnp.ones((50, 6), bool)
    batch = {"src_where": where, "where": where}
    for bos, first in ((None, 0), (0, 1)):
        view = seq2seq_task.make_views(given, 8, Special(bos=bos))
        found = view(batch, KEY)
        kept = {name: found[name][..., 0].all(axis=0) for name in ("src_keep", "keep")}
        assert kept["src_keep"].tolist() == [bool(first), *[False] * 4, True]
        assert kept["keep"].tolist() == [True, bool(first), *[False] * 4]


def test_simcut_cuts_the_second_pass_alone():
    _, made, shapes = built("translation", views="simcut", views_rate=0.4)
    first, second = made.step.views
    batch = example(shapes)
    assert first(batch, KEY) is batch
    cut = second(jax.tree.map(jnp.asarray, batch), KEY)
    assert not cut["src_keep"].all()
    assert not cut["keep"].all()
    _, made, _ = built("translation", views="simcut", alpha=0)
    assert made.step.views is None


MESSAGES = {
    "rdrop.views: expected one of none, crop, randaugment, found span_cutoff": (
        "image_classification",
        {"views": "span_cutoff"},
    ),
    "rdrop.views: expected one of none, token_cutoff, feature_cutoff, span_cutoff, "
    "found simcut": ("language_model", {"views": "simcut"}),
    "rdrop.views_rate: expected none, or in (0, 1), found 1.0": (
        "translation",
        {"views": "simcut", "views_rate": 1},
    ),
    "rdrop.views_rate: expected none without rdrop.views, got 0.1. Set rdrop.views": (
        "translation",
        {"views_rate": 0.1},
    ),
    "rdrop.num_passes: expected none or 1 or 2 with rdrop.views=simcut, found 3": (
        "translation",
        {"views": "simcut", "num_passes": 3},
    ),
    "rdrop.divergence: expected forward_kl or symmetric_kl with rdrop.views=simcut, "
    "found js": ("translation", {"views": "simcut", "divergence": "js"}),
    "rdrop.how: expected auto or unroll with rdrop.views=simcut, found vmap": (
        "summarization",
        {"views": "simcut", "how": "vmap"},
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_bad_fields_are_named(message):
    task, fields = MESSAGES[message]
    with pytest.raises(InputError, match=r".*") as error:
        config(task, **fields)
    assert str(error.value).replace("'", "") == message


def test_a_run_without_dropout_needs_views():
    assert tiny.config(model__dropout=0, rdrop__views="crop").model.dropout == 0
    with pytest.raises(InputError, match="needs dropout"):
        tiny.config(model__dropout=0)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(tmp_path):
    fields = {"rdrop__views": "randaugment", "rdrop__every": 2, "model__dropout": 0}
    fields |= {"optimizer__schedule": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = tiny.train(whole, **fields)
    tiny.train(parts, total_steps=2, **fields)
    assert tiny.train(parts, **fields)["test"] == result["test"]
    one, other = (run.open_run(path, "last").params for path in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEQ2SEQ)
def test_a_translator_trains_with_views(tmp_path, kind):
    folder = tiny_nmt.write(tmp_path)
    fields = {"rdrop__views": kind, "accum_steps": 2, "rdrop__every": 2}
    result = tiny_nmt.train(folder, tmp_path / "run", **fields)
    assert np.isfinite(result["test"]["loss"])
