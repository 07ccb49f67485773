"""Many devices against one: the real vision task and train step on simulated CPUs."""

import functools
import math
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from orbax.checkpoint import type_handlers

from rdrop_jax import flags, tasks
from rdrop_jax.config import resolve
from rdrop_jax.models.layers import Dropout
from rdrop_jax.training.checkpoint import Checkpoints, Progress
from rdrop_jax.training.mesh import batch_sharding, make_mesh, shard_batch
from rdrop_jax.training.state import abstract_state, make_state, make_step, make_tx

VIT = str(Path(__file__).parents[2] / "configs" / "vit.py")
# Plain SGD: what a gradient differs in, parameters differ in, no more and no less.
# Of width 256 the matrices are just large enough to be cut over fsdp.
OPTIONS = {
    "total_steps": "10",
    "model.layers": "1",
    "model.width": "256",
    "model.heads": "2",
    "model.mlp_width": "256",
    "model.patch_size": "4",
    "optimizer.name": "sgd",
    "optimizer.momentum": "0",
    "optimizer.lr": "0.3",
    "optimizer.schedule": "constant",
    "optimizer.warmup": "0",
}
SLOW = [pytest.param(shape, marks=pytest.mark.slow) for shape in ((8, 1, 1), (1, 1, 2))]
SHAPES = [(1, 8, 1), (2, 2, 2), *SLOW]
STEPS = 3


@functools.cache
class Run:
    """A config on a mesh over the first devices, from its first state on."""

    def __init__(self, shape=(1, 1, 1), **overrides):
        changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
        config = flags.load(VIT, OPTIONS | changed)
        self.task = tasks.build(config)
        self.config = resolve(config, self.task.train_data().steps_per_epoch)
        self.tx = make_tx(self.config)
        self.mesh = make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
        step = make_step(self.task, self.tx, self.config, self.mesh)
        self.step = jax.jit(step, donate_argnums=0)
        self.abstract = abstract_state(self.task, self.tx, self.config, self.mesh)
        placed = jax.tree.map(lambda x: x.sharding, self.abstract)
        self.start = jax.jit(
            lambda: make_state(self.task, self.tx, self.config), out_shardings=placed
        )

    def batch(self, t):
        return shard_batch(self.mesh, self.task.train_data()[t])

    def go(self, state, start=0, stop=STEPS):
        """The state after these steps and (loss, gradient norm) of each."""
        seen = []
        for t in range(start, stop):
            state, metrics = self.step(state, self.batch(t))
            seen.append([metrics["loss"].total, metrics["grad_norm"].total])
        return state, np.asarray(seen, np.float64)

    def collectives(self):
        text = self.step.lower(self.start(), self.batch(0)).compile().as_text()
        ops = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        found = re.findall(rf" ({ops}|collective-broadcast)(?:-start)?\(", text)
        return Counter(found)


def assert_close(found, wanted, tolerance):
    """Within ``tolerance`` of the largest entry of each array."""

    def check(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        scale = max(float(np.abs(y).max()), 1e-3)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)

    jax.tree.map(check, found, wanted)


def words(x):
    typed = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if typed else x)


@pytest.fixture(scope="module")
def single():
    run = Run((1, 1, 1))
    begun = jax.tree.map(np.asarray, run.start().params)
    state, seen = run.go(run.start())
    # The head starts at zero: only later gradients reach the rest, and all must.
    for old, new in zip(
        jax.tree.leaves(begun), jax.tree.leaves(state.params), strict=True
    ):
        assert np.any(old != new)
    return jax.tree.map(np.asarray, state.params), seen


@pytest.mark.parametrize(
    "shape", [pytest.param(SHAPES[0], marks=pytest.mark.slow), *SHAPES[1:]]
)
def test_many_devices_equal_one(single, shape):
    run = Run(shape)
    state, seen = run.go(run.start())
    assert_close(seen, single[1], 1e-5)
    assert_close(state.params, single[0], 1e-5)


@pytest.mark.slow
def test_adam_and_alternating_steps_follow_the_same_losses():
    """Parameters are not compared: Adam scales gradients of rounding errors up."""
    options = {"optimizer__name": "adam", "optimizer__lr": 1e-3}
    options |= {"rdrop__every": 2, "rdrop__dropouts": "(0.1, 0.3)"}
    one, many = Run(**options), Run((2, 2, 2), **options)
    seen, wanted = (run.go(run.start())[1] for run in (many, one))
    assert_close(seen, wanted, 1e-5)


def test_fsdp_and_tensor_cut_what_they_should():
    state = Run((2, 2, 2)).start()
    layer = state.params["block_0"]["mlp"]["mlp_in"]
    assert layer["kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    assert layer["kernel"].addressable_shards[0].data.size == 256 * 256 // 4
    assert layer["bias"].sharding.spec == PartitionSpec("tensor")
    adam = Run((1, 8, 1), optimizer__name="adam").start().opt_state
    cut = [x for x in jax.tree.leaves(adam) if x.addressable_data(0).size < x.size]
    assert len(cut) == 12  # two moments of six matrices


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"model__remat": "true"}, {"rdrop__how": "vmap"}], ids=str
)
def test_remat_and_vmap_change_nothing(single, options):
    run = Run((2, 2, 2), **options)
    state, seen = run.go(run.start())
    assert_close(seen, single[1], 1e-5)
    assert_close(state.params, single[0], 1e-5)


@pytest.mark.slow  # test_step has the same step with a smaller model
def test_microbatches_agree_under_sharding():
    one, many = Run(accum_steps=2), Run((2, 2, 2), accum_steps=2)
    (wanted, wanted_seen), (state, seen) = (run.go(run.start()) for run in (one, many))
    assert_close(seen, wanted_seen, 1e-5)
    assert_close(state.params, wanted.params, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_sharding_moves_bfloat16_less_than_its_rounding_does(single, shape):
    def distance(a, b):
        parts = jax.tree.map(lambda x, y: np.sum(np.square(np.asarray(x) - y)), a, b)
        return math.sqrt(sum(jax.tree.leaves(parts)))

    one, many = (Run(s, model__dtype="bfloat16") for s in ((1, 1, 1), shape))
    rounded, rounded_seen = one.go(one.start())
    rounded = jax.tree.map(np.asarray, rounded.params)
    state, seen = many.go(many.start())
    rounding = distance(rounded, single[0])
    assert 0 < rounding < 0.02 * distance(single[0], one.start().params)
    assert distance(state.params, rounded) < rounding
    assert_close(seen, rounded_seen, 2**-8)


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        ("unroll", (1, 8, 1)),
        pytest.param("unroll", (2, 4, 1), marks=pytest.mark.slow),
        pytest.param("vmap", (1, 8, 1), marks=pytest.mark.slow),
        pytest.param("vmap", (2, 4, 1), marks=pytest.mark.slow),
    ],
)
def test_collectives_of_fsdp(how, shape):
    counts = Run(shape, rdrop__how=how).collectives()
    # Six matrices; the second sum is of their gradients' norms.
    assert counts == {"all-gather": 6, "all-reduce": 2}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unroll", "vmap"])
def test_collectives_of_the_step(how):
    """Replicated: one sum of all gradients."""
    assert Run((8, 1, 1), rdrop__how=how).collectives() == {"all-reduce": 1}
    # A sum per tensor-parallel block and pass besides; no row changes its device.
    counts = Run((2, 2, 2), rdrop__how=how).collectives()
    assert set(counts) == {"all-gather", "all-reduce"}


def test_microbatches_move_no_rows():
    """One sum, in the loop over them."""
    counts = Run((8, 1, 1), accum_steps=2).collectives()
    assert counts == {"all-reduce": 1}


def test_masks_are_the_same_on_one_and_eight_devices():
    layer, x = Dropout(0.5), np.ones((32, 5, 64), np.float32)

    def masked(mesh):
        placed = batch_sharding(mesh)
        apply = jax.jit(
            lambda x: layer.apply({}, x, train=True, rngs={"dropout": key}),
            out_shardings=placed,
        )
        return np.asarray(apply(jax.device_put(x, placed)))

    key = jax.random.key(3)
    one = masked(make_mesh(devices=jax.devices()[:1]))
    assert 0.4 < np.mean(one == 0) < 0.6
    assert len(np.unique(one.reshape(32, -1), axis=0)) == 32  # no two rows alike
    for shape in ((8, 1, 1), (2, 2, 2)):
        np.testing.assert_array_equal(masked(make_mesh(*shape)), one)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        *(pytest.param(s, marks=pytest.mark.slow) for s in [(1, 2, 1), (2, 1, 1)]),
    ],
)
def test_saved_on_eight_devices_and_gone_on_with_fewer(tmp_path, shape, monkeypatch):
    handler = type_handlers.get_type_handler(jax.Array)
    monkeypatch.setattr(handler, "_use_replica_parallel", True)  # as in the programs
    many, few = Run((2, 2, 2)), Run(shape)
    state, _ = many.go(many.start(), 0, 2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, state, Progress())
    checkpoints.wait()
    found, _ = checkpoints.restore(2, few.abstract)
    checkpoints.close()
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(words(a), words(b)), found, state
    )
    placed = jax.tree.map(lambda x: x.sharding.is_equivalent_to, few.abstract)
    for same, leaf in zip(jax.tree.leaves(placed), jax.tree.leaves(found), strict=True):
        assert same(leaf.sharding, leaf.ndim)
    a, b = few.batch(2), many.batch(2)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)
    found, seen = few.go(found, 2, 4)
    state, wanted = many.go(state, 2, 4)
    assert int(found.step) == 4
    assert_close(seen, wanted, 1e-5)
    assert_close(found.params, state.params, 1e-5)
