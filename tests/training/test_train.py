"""Training in this process: options, resumption, errors. Tiny ViTs on real digits."""

import json
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import TINY, VIT

from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax import train as train_program
from rdrop_jax.cli.run import open_run
from rdrop_jax.config import resolve
from rdrop_jax.core.metrics import Mean
from rdrop_jax.data import sources
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.tasks.image_classification import scores as classification
from rdrop_jax.tasks.language_modeling import task as language_model
from rdrop_jax.tasks.summarization import task as summarization
from rdrop_jax.tasks.text_classification import scores as language
from rdrop_jax.tasks.translation import task as translation
from rdrop_jax.training import direction, loop
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.state import make_state, make_step, make_tx
from rdrop_jax.training.window import Window


def config(**overrides):
    changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return flags.load(VIT, TINY | changed)


def train(workdir, **overrides):
    return train_program.train(config(**overrides), workdir)


def params(workdir, checkpoint="last"):
    return open_run(workdir, checkpoint).params


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """Workdir and result of a finished run, and messages about its compilations."""
    workdir, text = tmp_path_factory.mktemp("reference"), []
    handler = logging.Handler()
    handler.emit = lambda record: text.append(record.getMessage())
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles(True):
            result = train(workdir)
    finally:
        logger.removeHandler(handler)
    return workdir, result, text


@pytest.fixture(scope="module")
def reference(logged):
    return logged[:2]


def test_speed_excludes_validations_and_saves(tmp_path, monkeypatch):
    def slow(callbacks, event, step, value):
        if event in ("validation", "save"):
            time.sleep(1.0)

    monkeypatch.setattr(loop, "notify", slow)
    every = dict.fromkeys(("log__every", "eval__every", "checkpoint__every"), 1)
    train(tmp_path, total_steps=3, **every)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    speeds = [json.loads(line).get("steps_per_second") for line in lines]
    found = [speed for speed in speeds if speed is not None]
    assert len(found) == 2  # the first step compiles
    assert min(found) > 1


def test_a_run_leaves_what_it_promises(reference):
    workdir, result = reference
    assert set(result) == {
        "step",
        "checkpoint_step",
        "validation",
        "test",
        "seconds",
        "data",
        "run",
    }
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["step"] == 6
    assert result["checkpoint_step"] in (3, 6)
    assert result["test"]["examples"] == 360
    assert 0.0 <= result["test"]["accuracy"] <= 1.0
    assert len(result["data"]["digits.csv.gz"]) == 64
    lines = [
        json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()
    ]
    train_steps = [x["step"] for x in lines if x["kind"] == "train"]
    assert train_steps == [2, 4, 6]
    assert [x["step"] for x in lines if x["kind"] == "validation"] == [3, 6]
    first = lines[0]
    for name in ("ce", "kl", "loss", "grad_norm", "lr", "steps_per_second"):
        assert np.isfinite(first[name])
    assert first["kl"] > 0


@pytest.mark.slow  # a run that stops and resumes also equals the reference
def test_a_run_of_the_same_seed_is_the_same(reference, tmp_path):
    train(tmp_path)
    assert_equal(params(tmp_path), params(reference[0]))


@pytest.mark.slow
def test_another_seed_is_another_run(reference, tmp_path):
    train(tmp_path, seed=1)
    head, other = (params(w)["embedding"]["kernel"] for w in (tmp_path, reference[0]))
    assert np.any(head != other)


def test_a_complete_run_is_left_alone(reference, capsys):
    workdir, result = reference
    before = (workdir / "metrics.jsonl").read_text()
    assert train(workdir) == result
    assert "complete" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").read_text() == before


def test_stopping_and_going_on_changes_nothing(reference, tmp_path, monkeypatch):
    """Saves at 2 and 3, dies at 5: the second start goes on from 4."""

    class Killed(Exception):
        pass

    real = loop.check_finite

    def dies(state, checkpoints):
        real(state, checkpoints)
        if int(state.step) == 6:
            raise Killed

    monkeypatch.setattr(loop, "check_finite", dies)
    with pytest.raises(Killed):
        train(tmp_path)
    monkeypatch.setattr(loop, "check_finite", real)
    assert not (tmp_path / "result.json").exists()
    result = train(tmp_path)
    assert_equal(params(tmp_path), params(reference[0]))
    assert result["test"] == reference[1]["test"]
    steps = [
        json.loads(x)["step"]
        for x in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [2, 3, 4, 6, 6]


def test_before_the_first_checkpoint_the_config_may_be_mended(tmp_path):
    with pytest.raises(InputError, match=r"model\.heads"):
        train(tmp_path, model__heads=3)
    assert train(tmp_path, total_steps=1)["step"] == 1


@pytest.mark.slow
def test_a_longer_run_cuts_what_came_after_the_checkpoint(tmp_path):
    """Records of steps after the newest checkpoint are written again, once."""
    train(tmp_path, total_steps=4, optimizer__schedule="constant")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "kind": "train", "ce": 99.0}) + "\n")
    longer = train(tmp_path, total_steps=6, optimizer__schedule="constant")
    assert longer["step"] == 6
    text = (tmp_path / "metrics.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    assert [r["step"] for r in records if r["kind"] == "train"] == [2, 4, 6]
    assert records[-1].get("ce") != 99.0


def test_scores_equal_plain_numpy(reference):
    run = open_run(reference[0])
    rows = sources.digits("validation", 0)
    pixels = (rows.images.astype(np.float32) / 255 - 0.5) / 0.5
    logits = np.asarray(
        run.task.forward(run.params, {"image": jnp.asarray(pixels)}, None)
    )
    z = logits.astype(np.float64)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    found = run.task.evaluators["validation"](run.mesh)(run.params)
    assert found["accuracy"] == (z.argmax(-1) == rows.labels).mean()
    nll = -log_p[np.arange(len(rows)), rows.labels].mean()
    assert found["loss"] == pytest.approx(nll, rel=1e-5)


def test_a_run_begun_while_eval_mode_was_a_field_goes_on():
    stored = config().to_dict()
    stored["eval"]["mode"] = "min"
    assert config_lib.differences(stored, config()) == []


def test_another_config_is_refused_with_its_differences(reference):
    with pytest.raises(InputError) as error:
        train(reference[0], rdrop__alpha=0.5, optimizer__lr=1e-4)
    message = str(error.value)
    assert "was started with a different config" in message
    assert "optimizer.lr: workdir 0.003, now 0.0001" in message
    assert "rdrop.alpha: workdir 1.0, now 0.5" in message
    assert "seed" not in message


def test_accumulation_equals_the_full_batch():
    """Without dropout; with it, microbatches draw masks of their own."""
    options = {
        "model__dropout": 0,
        "rdrop__alpha": 0,
        "rdrop__num_passes": 2,
        "optimizer__name": "sgd",
    }
    states = []
    for accum_steps in (1, 4):
        c = config(accum_steps=accum_steps, **options)
        task = tasks.build(c)
        c = resolve(c, task.train_data().steps_per_epoch)
        tx = make_tx(c)
        state, step = make_state(task, tx, c), jax.jit(make_step(task, tx, c))
        for t in range(2):
            state, _ = step(state, task.train_data()[t])
        states.append(state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *states
    )


def test_each_pass_has_the_rate_that_it_is_given():
    task = tasks.build(config(rdrop__dropouts="(0, 0.3)"))
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    wave = lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape)  # noqa: E731
    params = jax.tree.map(wave, params)  # a head at 0 hides masks
    batch = jax.tree.map(jnp.asarray, task.train_data()[0])
    off = task.forward(params, batch, None)
    first, second = (f(params, batch, key) for f in task.step.forwards)
    np.testing.assert_allclose(first, off, rtol=1e-6)
    at_rate = tasks.build(config(model__dropout=0.3)).forward
    np.testing.assert_array_equal(second, at_rate(params, batch, key))
    assert not np.allclose(second, off)
    plain = tasks.build(config(rdrop__dropouts="(0, 0.3)", rdrop__alpha=0))
    assert plain.step.forwards == ()


@pytest.mark.parametrize(
    "overrides",
    [
        {
            "accum_steps": 4,
            "model__dtype": "bfloat16",
            "model__remat": "true",
            "rdrop__how": "vmap",
            "rdrop__alpha_warmup": 3,
            **dict.fromkeys(("mesh__data", "mesh__fsdp", "mesh__tensor"), 2),
        },
        pytest.param(
            {
                "rdrop__dropouts": "(0.1, 0.3)",
                "rdrop__every": 2,
                "optimizer__name": "nag",
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rdrop__num_passes": 3, "rdrop__divergence": "js", "optimizer__clip": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"rdrop__alpha": 0, "rdrop__num_passes": 2, "rdrop__label_smoothing": 0.1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_options_train(tmp_path, overrides):
    result = train(tmp_path, total_steps=2, eval__every=2, **overrides)
    assert result["step"] == 2
    assert np.isfinite(result["test"]["loss"])


def test_the_moving_average_is_what_is_evaluated(reference, tmp_path):
    result = train(tmp_path, optimizer__ema=0.5)
    run = open_run(tmp_path, str(result["checkpoint_step"]))
    again = run.task.evaluators["test"](run.mesh)(run.params)
    assert again == result["test"]
    plain = reference[1]["validation"]["loss"]
    assert plain != result["validation"]["loss"]


@pytest.mark.slow
def test_patience_stops_and_stays_stopped(tmp_path):
    overrides = {
        "total_steps": 40,
        "eval__every": 1,
        "eval__patience": 2,
        "optimizer__lr": 0,
    }
    result = train(tmp_path, **overrides)
    assert result["step"] == 3  # the first score stands, two more do not beat it
    assert result["checkpoint_step"] == 1
    assert train(tmp_path, **overrides) == result


@pytest.mark.slow  # a run of an export also starts with given weights
def test_init_from_starts_with_the_weights_of_another_run(reference, tmp_path):
    """The other run is not needed to resume."""
    source, workdir = tmp_path / "source", tmp_path / "run"
    shutil.copytree(reference[0], source)
    options = {"init_from": source, "optimizer__schedule": "constant"}
    options |= {"optimizer__lr": 0, "seed": 5}
    train(workdir, total_steps=2, **options)
    assert_equal(params(workdir), params(reference[0], "best"))
    shutil.rmtree(source)
    assert train(workdir, total_steps=3, **options)["step"] == 3


def test_checkpoints_are_named_after_a_colon(tmp_path):
    assert workdir_lib.split_checkpoint(f"{tmp_path}:7") == (tmp_path, "7")
    assert workdir_lib.split_checkpoint(f"{tmp_path}:last") == (tmp_path, "last")
    assert workdir_lib.split_checkpoint("C:/runs/a") == (Path("C:/runs/a"), "best")


def test_a_score_that_is_nan_is_the_worst():
    scores = {"accuracy": float("nan"), "loss": 2.0}
    assert loop.signed_score("accuracy", scores) == -np.inf
    assert loop.signed_score("loss", scores) == -2.0


def test_every_score_knows_which_way_is_better():
    lower = {"loss", "ece", "perplexity", "bits_per_character"}
    names = {
        *classification.NAMES,
        *(name for names in language.NAMES.values() for name in names),
        *translation.SCORES,
        *summarization.SCORES,
        *language_model.SCORES,
    }
    assert {name for name in names if direction(name) == "min"} == lower
    assert direction("error_rate") == "min"  # of tasks of the user


def test_init_from_another_model_lists_the_difference(reference, tmp_path):
    with pytest.raises(InputError) as error:
        train(tmp_path, init_from=reference[0], model__mlp_width=32, model__layers=2)
    message = str(error.value)
    assert "init_from: weights of another model" in message
    assert "block_0/mlp/mlp_in/kernel: expected (16, 32), found (16, 16)" in message
    assert "block_1/mlp/mlp_in/bias: expected (32,), found none" in message
    assert "embedding" not in message
    with pytest.raises(InputError, match="found nothing at"):
        train(tmp_path / "b", init_from=tmp_path / "nowhere")


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
    bad = {"optimizer__lr": 1e38, "optimizer__clip": 0, "log__every": 6}
    with pytest.raises(TrainingError, match="step 0: expected a finite loss") as error:
        train(tmp_path, checkpoint__every=1, **bad)
    assert "last checkpoint: step none" in str(error.value)
    with pytest.raises(TrainingError, match="step 0: expected a finite loss"):
        train(tmp_path, total_steps=1, **bad)
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "result.json").exists()


def test_masks_that_do_not_differ_stop_the_run(tmp_path, monkeypatch):
    build = tasks.build

    def without_key(config, workdir, **options):
        task = build(config, workdir, **options)
        forward = lambda params, batch, key: task.forward(params, batch, None)  # noqa: E731
        return replace(task, forward=forward)

    monkeypatch.setattr(tasks, "build", without_key)
    with pytest.raises(InputError, match=r"rdrop\.alpha=1\.0: two dropout keys give"):
        train(tmp_path)
    train(tmp_path / "plain", rdrop__alpha=0, total_steps=1)


def test_a_fault_of_test_data_is_an_error_before_the_first_step(tmp_path):
    def damaged(mesh):
        raise InputError("test.npz: damaged")

    task = tasks.build(config())
    task = replace(task, evaluators={**task.evaluators, "test": damaged})
    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"test\.npz: damaged"):
        train_program.train(config(), run, task)
    assert not (run / "metrics.jsonl").exists()
    result = train_program.train(config(eval__test=False), run, task)
    assert "test" not in result


def test_a_finished_run_can_be_scored_on_test_data_later(tmp_path):
    first = train(tmp_path, total_steps=2, eval__test=False)
    second = train(tmp_path, total_steps=2)
    assert second["validation"] == first["validation"]
    assert second["test"]["examples"] == 360
    assert train(tmp_path, total_steps=2, eval__test=False) == second


def test_labels_out_of_range_stop_the_run(tmp_path):
    with pytest.raises(InputError, match=r"expected labels from 0 to .* = 8, found 9"):
        train(tmp_path, data__num_classes=9)


def test_bad_models_and_data_are_named(tmp_path):
    for overrides, message in [
        ({"model__size": "XL"}, "model.size: expected one of mini, Ti, S, B, L"),
        ({"model__heads": 0}, "model.heads: expected at least 1, found 0"),
        ({"model__patch_size": 0}, "model.patch_size: expected at least 1, found 0"),
        ({"data__shift": -1}, "data.shift: expected at least 0, found -1"),
        ({"total_steps": 0}, "total_steps: expected at least 1, found 0"),
        ({"model__heads": 3}, "model.heads: expected a divisor of width 16, found 3"),
        ({"model__patch_size": 3}, "model.patch_size: expected a divisor of"),
        ({"data__channels": 2}, "data.channels: expected 1 or 3, found 2"),
        ({"data__name": "cifar"}, "data.name: expected one of digits, imagenet2012,"),
        (
            {"model__name": "cnn"},
            "model.name: expected one of vit, dinov2, found 'cnn'",
        ),
        ({"task": "speech"}, "task: expected one of image_classification"),
        (
            {"eval__metric": "bleu"},
            "eval.metric: expected one of accuracy, top5, loss, ece, found",
        ),
        ({"batch_size": 12}, "expected a multiple of the 8 devices"),
    ]:
        with pytest.raises(InputError) as error:
            train(tmp_path / str(abs(hash(message))), **overrides)
        assert message in str(error.value)


def test_each_shape_is_compiled_once(logged):
    text = logged[2]
    steps = [x for x in text if x.startswith("Compiling jit(train_step)")]
    scores = [x for x in text if x.startswith("Compiling jit(sums)")]
    assert len(steps) == 1, steps
    assert len(scores) == 1, scores  # all splits share it


def test_window_means_cover_all_steps_since_the_last():
    window = Window(0, 0.0)
    for value in (1.0, 2.0, 6.0):
        window.add({"ce": Mean(jnp.float32(value), jnp.float32(1.0))})
    assert window.read(3)["ce"] == pytest.approx(3.0)
    window.add({"ce": Mean(jnp.float32(5.0), jnp.float32(1.0))})
    assert window.read(4)["ce"] == pytest.approx(5.0)
    window.add({"ce": Mean(jnp.float32(0.0), jnp.float32(0.0))})  # no labelled row
    assert "ce" not in window.read(5)
