"""The example for CTC, on tones instead of speech: a pitch for each digit."""

import wave
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax import forward_passes, tasks
from rdrop_jax.cli import flags
from rdrop_jax.cli import train as program
from rdrop_jax.cli.run import open_run
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json

EXAMPLE = Path(__file__).parents[2] / "examples" / "spoken_digits.py"
TINY = {"data.frames": 80, "data.strings": 3, "batch_size": 2, "total_steps": 10}
TINY |= {"model.width": 4, "model.layers": 1}


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    for digit in range(10):
        for index in (0, 5, 10, 11):
            t = np.arange(rng.integers(1600, 2400)) / 8000
            sound = np.sin(2 * np.pi * 250 * 1.3**digit * t)
            sound += rng.normal(0, 0.1, t.shape)
            with wave.open(str(folder / f"{digit}_tone_{index}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes((8000 * sound).astype("<i2").tobytes())
    return folder


@pytest.fixture(scope="module")
def example():
    return tasks.load_file("task", EXAMPLE)


def load(folder, **fields):
    given = TINY | {"data.dir": folder} | fields
    return flags.load(str(EXAMPLE), {k: str(v) for k, v in given.items()})


def test_loss_of_two_views(tones, example):
    task = example.build(load(tones, **{"data.views": 2}))
    batch, key = task.train_data()[0], jax.random.key(0)

    @jax.jit
    def run(params, batch):
        outputs = forward_passes(
            task.forward, params, batch, key, how="vmap", views=task.step.views
        )
        return outputs, task.loss(outputs, batch, alpha=0.4)

    logits, (loss, metrics) = run(task.init(key), batch)
    assert np.isfinite(loss)
    assert metrics["kl"].compute() > 0
    assert metrics["infeasible"].compute() == 0
    assert len(example.decode(np.asarray(logits[0]), batch["frame_paddings"])) == 2


def test_one_view_is_the_same_for_all_passes(tones, example):
    keys = jax.random.split(jax.random.key(1))
    fields = {"model.layers": 0, "rdrop.alpha": 0}  # no dropout
    one, two = (
        example.build(load(tones, **fields | {"data.views": views})) for views in (1, 2)
    )
    batch, params = one.train_data()[0], one.init(jax.random.key(0))
    assert one.step.views is None
    assert np.array_equal(*(one.forward(params, batch, key) for key in keys))
    assert not np.array_equal(*(two.step.views(batch, key)["features"] for key in keys))


def test_strings_depend_on_seed_and_step_alone(tones, example):
    first, second = (example.build(load(tones)).train_data() for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first[3], second[3])
    assert not np.array_equal(first[3]["features"], first[4]["features"])
    longest = first[0]["label_paddings"].shape[1]
    for row, padded in zip(first[0]["labels"], first[0]["label_paddings"], strict=True):
        assert np.all((row > 0) == ~padded)
        assert len(row) == longest


def test_decoding_and_edits(example):
    frames = np.array([[0, 3, 3, 0, 3, 5, 5, 2], [7, 7, 0, 0, 0, 0, 0, 0]])
    padded = np.zeros((2, 32), bool)
    padded[0, 28:] = True  # the last frame
    assert example.decode(np.eye(11)[frames], padded) == [[3, 3, 5], [7]]
    assert example.edits([1, 2, 3], [1, 2, 3]) == 0
    assert example.edits([], [4, 5]) == 2
    assert example.edits([1, 3, 3, 9], [1, 2, 3]) == 2


def test_masks_of_spec_augment(example):
    batch = {
        "features": jnp.ones((3, 50, 40)),
        "frame_paddings": np.zeros((3, 50), bool),
    }
    masked = example.spec_augment(batch, jax.random.key(0), widest=(10, 8))["features"]
    assert set(np.unique(masked)) == {0.0, 1.0}
    times, bands = masked.max(axis=2) == 0, masked.max(axis=1) == 0
    assert 0 < times.sum(1).max() <= 20
    assert 0 < bands.sum(1).max() <= 16
    assert np.array_equal(masked == 0, times[:, :, None] | bands[:, None])


def test_bad_input(tones, example, tmp_path):
    with pytest.raises(InputError, match=r"data.dir: expected recordings such as"):
        example.build(load(tmp_path))
    with wave.open(str(tmp_path / "0_tone_0.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    with pytest.raises(InputError, match="expected 8 kHz, 16 bits, mono, found"):
        example.build(load(tmp_path))


def test_a_config_file_with_a_task(tones, monkeypatch, tmp_path):
    monkeypatch.chdir(EXAMPLE.parent)
    config = flags.load(EXAMPLE.name, {"data.dir": str(tones)})
    assert config.task == "spoken_digits.py"
    assert tasks.check_data(config) is config
    assert tasks.build(config).scores == ("error_rate", "loss")
    with pytest.raises(InputError, match=r"^--config: .* got spoken_digits.py"):
        tasks.abstract(config)
    views = flags.load(EXAMPLE.name, {"data.dir": str(tones), "rdrop.views": "crop"})
    with pytest.raises(InputError, match=r"^rdrop.views: expected none, .* got 'crop'"):
        tasks.build(views)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"task: expected a Python file, found 'spoken"
    ):
        tasks.build(config)


@pytest.mark.slow
def test_learns_tones(tones, tmp_path):
    fields = {"total_steps": 500, "batch_size": 8, "data.frames": 200}
    fields |= {"data.time_mask": 8, "data.band_mask": 2}  # a tone is in few bands
    fields |= {"data.strings": 30, "model.width": 32, "model.layers": 1}
    fields |= {"data.views": 2, "data.dir": tones, "log.trackers": "()"}
    argv = [f"--config.{name}={value}" for name, value in fields.items()]
    program.main(["--config", str(EXAMPLE), "--workdir", str(tmp_path), *argv])
    test = read_json(tmp_path / "result.json")["test"]
    assert test["error_rate"] < 0.05
    run = open_run(tmp_path)
    rates = run.task.examples["test"](run.mesh)(run.params, None)["error_rate"]
    np.testing.assert_allclose(rates.mean(), test["error_rate"], rtol=1e-6)
