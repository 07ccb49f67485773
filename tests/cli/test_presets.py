"""Every preset at full size by its shapes; the paper's fine-tuning compiled and run."""

import functools

import jax
import numpy as np
import pytest
from helpers.tiny import VIT

from configs import vit
from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.cli import targets
from rdrop_jax.cli.compile import compile_step
from rdrop_jax.tasks.image_classification import images
from rdrop_jax.training import state
from rdrop_jax.training.mesh import make_mesh, shard_batch

# Without the head: Dosovitskiy et al. (2021); for DINOv2-S, the arrays of its file.
MILLIONS = {"B": 85.8, "L": 303.3, "S": 21.6}
HUB = {
    "B": "hf:google/vit-base-patch16-224-in21k",
    "L": "hf:google/vit-large-patch16-224-in21k",
    "S": "hf:facebook/dinov2-small",
}


@functools.cache
def built(preset):
    config = config_lib.resolve(flags.load(f"{VIT}:{preset}", {}), 100.0).unlock()
    config.data.num_classes = config.data.num_classes or 7
    images.check_transforms(config.data)
    task = tasks.build(config.lock())
    return config, task, jax.eval_shape(task.init, jax.random.key(0))


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(p, marks=pytest.mark.slow) if p.endswith("l16") else p
        for p in vit.PRESETS
    ],
)
def test_every_preset_has_its_shapes(preset):
    config, task, params = built(preset)
    size = config.data.image_size
    batch = {"image": jax.ShapeDtypeStruct((2, size, size, config.data.channels), "f4")}
    logits = jax.eval_shape(task.forward, params, batch, jax.random.key(0))
    assert logits.shape == (2, config.data.num_classes)
    count = sum(x.size for x in jax.tree.leaves(params)) / 1e6
    if config.init_from:
        head = config.data.num_classes * params["head"]["kernel"].shape[0] / 1e6
        positions = params["positions"].size / 1e6
        at_224 = 197 * params["positions"].shape[-1] / 1e6
        expected = MILLIONS[config.model.size]
        assert count - head - positions + at_224 == pytest.approx(expected, abs=0.1)
        assert config.init_from == HUB[config.model.size]
    assert vit.PRESETS[preset].__doc__
    assert preset == "demo" or f"vit.py:{preset}" in vit.PRESETS[preset].__doc__


def test_the_recipe_is_the_published_one():
    config, _, _ = built("cifar100")
    schedule = state.make_schedule(config.optimizer, config.total_steps)
    assert (config.batch_size, config.total_steps) == (512, 20_000)
    assert config.data.image_size == 224
    assert config.rdrop.alpha == pytest.approx(0.3 * 2 * 32)
    assert (config.optimizer.name, config.optimizer.momentum) == ("sgd", 0.9)
    assert (config.optimizer.clip, config.optimizer.weight_decay) == (1.0, 0.0)
    assert float(schedule(500)) == pytest.approx(8e-3)
    assert float(schedule(250)) == pytest.approx(4e-3)
    assert float(schedule(20_000)) == pytest.approx(0.0, abs=1e-9)
    assert not config.data.flip
    assert tuple(config.data.crop_area) == (0.05, 1.0)


@pytest.mark.slow
def test_full_size_fine_tuning_compiles_for_eight_devices_and_steps():
    changed = {"mesh.fsdp": "8", "batch_size": "64"}
    config = flags.load(f"{VIT}:cifar100", {"init_from": ""} | changed)
    _, report = compile_step(config, targets.parse("cpu:8"))
    batch = 64 * 224 * 224 * 3 * 4
    # Parameters and momentum are sharded, and what is replicated is small.
    assert report.state < 1.05 * (2 * 4 * report.parameters + batch) / 8

    shallow = changed | {"model.layers": "1", "batch_size": "8"}
    config = config_lib.resolve(flags.load(f"{VIT}:cifar100", shallow), 100.0)
    mesh = make_mesh(**config.mesh)
    task, tx = tasks.build(config), state.make_tx(config)
    placed = jax.tree.map(
        lambda x: x.sharding, state.abstract_state(task, tx, config, mesh)
    )
    now = jax.jit(lambda: state.make_state(task, tx, config), out_shardings=placed)()
    step = jax.jit(state.make_step(task, tx, config, mesh), donate_argnums=0)
    rng = np.random.default_rng(0)
    for _ in range(2):
        pixels = rng.normal(size=(8, 224, 224, 3)).astype(np.float32)
        labels = rng.integers(0, 100, 8).astype(np.int32)
        now, metrics = step(now, shard_batch(mesh, {"image": pixels, "label": labels}))
    assert int(now.step) == 2
    assert int(now.first_bad_step) < 0
    # A head of zeros: every class is as likely, whatever the pixels.
    assert float(metrics["ce"].compute()) == pytest.approx(np.log(100), abs=0.1)
