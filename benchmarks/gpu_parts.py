"""Parts of `benchmarks.gpu`. Each is meant for a separate process.

A part is a function of the size, "full" or "small", and of the device's name as
`rdrop_jax.compile` knows it. It returns its results, or the reason why it is skipped.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.presets import PROGRAMS
from benchmarks.turns import Arm, import_torch, interleaved, ratio, repeated
from rdrop_jax import config as config_lib
from rdrop_jax import flags, tasks
from rdrop_jax.cli import compile as compile_lib
from rdrop_jax.cli import targets
from rdrop_jax.errors import InputError
from rdrop_jax.versions import versions

ROUNDS = {"full": 10, "small": 1}
RESUME_STEPS = {"full": 40, "small": 2}
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
VOCABULARY = {"full": (16_384, 2_560, 128_256), "small": (64, 8, 50)}  # rows of a pass
_WIDTHS = {"model.width": "16", "model.heads": "1", "model.mlp_width": "16"}
_ONE = _WIDTHS | {"model.layers": "1", "batch_size": "2", "accum_steps": "1"}
_PAIR = _WIDTHS | {"model.encoder_layers": "1", "model.decoder_layers": "1"}
_PAIR |= {"data.vocab_size": "50", "data.max_length": "8", "data.rows_multiple": "1"}
_PAIR |= {"batch_tokens": "32", "accum_steps": "1"}
# Main preset of each task, and the fields of its small size.
SMALL = {
    "cifar100": _ONE | {"data.image_size": "32"},
    "sst2_bert_base": _ONE | {"model.vocab_size": "50", "data.max_length": "8"},
    "wmt14_en_de": _PAIR,
    "cnn_dailymail": _PAIR | {"data.max_target_length": "8"},
    "wikitext103": _ONE | {"data.vocab_size": "50", "data.block_size": "8"},
}
FULL = {"cifar100": {"batch_size": "64"}}
Found = dict[str, Any]


def load(preset: str, size: str, fields: Mapping[str, str]) -> ConfigDict:
    """Load a preset in bfloat16, without weights."""
    program = next(program for program in PROGRAMS if program.name == preset)
    sized = SMALL[preset] if size == "small" else FULL.get(preset, {})
    given = {"init_from": "", "model.dtype": "bfloat16"} | dict(program.fields)
    return flags.load(f"configs/{program.spec}", given | sized | dict(fields))


def random_batch(config: ConfigDict, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a batch whose rows have the maximum length."""
    import jax

    rng = np.random.default_rng(0)
    vocab = config.model.get("vocab_size") or config.data.get("vocab_size", 2)

    def draw(name: str, x: Any) -> np.ndarray:
        if name == "length":
            return np.full(x.shape, config.data.max_length)
        if x.dtype == bool or name == "labelled":
            return np.ones(x.shape)
        if x.dtype == np.float32:
            return rng.normal(size=x.shape)
        return rng.integers(0, 2 if name in ("label", "types") else vocab, x.shape)

    drawn = {name: draw(name, x).astype(x.dtype) for name, x in shapes.items()}
    return {name: jax.device_put(x, shapes[name].sharding) for name, x in drawn.items()}


def device_memory(field: str) -> int | None:
    """Return a field of the device's memory statistics; None if it has none."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get(field)


def compiled_for(program: Any, *arguments: Any) -> tuple[Any, Found]:
    """Compile a jitted program; return it with seconds and temporary bytes."""
    begin = time.perf_counter()
    lowered = program.lower(*arguments)
    middle = time.perf_counter()
    compiled = lowered.compile()
    return compiled, {
        "trace_seconds": middle - begin,
        "compile_seconds": time.perf_counter() - middle,
        "temporary": compiled.memory_analysis().temp_size_in_bytes,
    }


def make_step(preset: str, size: str, fields: Mapping[str, str]) -> tuple[Arm, Found]:
    """Compile the train step of a preset, and run it once."""
    import jax

    from rdrop_jax.training import state as state_lib
    from rdrop_jax.training.mesh import make_mesh

    config = config_lib.resolve(load(preset, size, fields), 1000.0)
    mesh = make_mesh(devices=jax.local_devices()[:1])
    run, abstract, shapes = compile_lib.abstract_step(config, mesh, "train")
    with jax.set_mesh(mesh):
        compiled, found = compiled_for(run, abstract, shapes)
    task, _ = tasks.abstract(config)
    state = jax.jit(
        lambda: state_lib.make_state(task, state_lib.make_tx(config), config),
        out_shardings=jax.tree.map(lambda x: x.sharding, abstract),
    )()
    step = repeated(compiled, state, random_batch(config, shapes))
    step()
    return step, found


def add_times(found: Found, arms: Mapping[str, Arm], rounds: int) -> Found:
    """Add the median milliseconds of each arm, and ratios of the first to each."""
    seconds = interleaved(arms, rounds)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        found[name]["ms"] = 1e3 * statistics.median(times)
        found[name]["first_over_this"] = ratio(first, times)
    return found


def measure_step(preset: str, size: str, target: str) -> Found:
    """Measure the step of a preset with R-Drop and plain."""
    ours, found = make_step(preset, size, {})
    # Later, the process also holds the state of the plain step.
    found["peak"] = device_memory("peak_bytes_in_use")
    plain, plainly = make_step(preset, size, {"rdrop.alpha": "0"})
    arms = {"R-Drop": ours, "plain": plain}
    return add_times({"R-Drop": found, "plain": plainly}, arms, ROUNDS[size])


def attention_differences(size: str) -> dict[str, float]:
    """Return maximum differences of fused attention from the default, over passes."""
    import jax
    import jax.numpy as jnp

    from rdrop_jax.models.attend import attend, fused_attend

    rows, time, heads, width = (64, 197, 12, 64) if size == "full" else (2, 5, 2, 8)
    shape = (4, 2, rows, time, heads, width)
    *arrays, slope = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    lengths = time - jnp.arange(rows) % 4
    where = (jnp.arange(time)[None] < lengths[:, None])[:, None, None]

    def default(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, where, None, 0.0, "hash")

    def fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return fused_attend(q, k, v, where, "cudnn" if size == "full" else "xla")

    def of_passes(attention: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(jax.vmap(attention), *arrays)
        return out, *pull(slope)

    run = jax.jit(of_passes, static_argnums=0)
    names = ("values", "query", "key", "value")
    return {
        name: float(jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))))
        for name, a, b in zip(names, run(default), run(fused), strict=True)
    }


def measure_fused(size: str, target: str) -> Found:
    """Compare `model.fused_attention` with the default: steps, values, gradients."""
    default, found = make_step("cifar100", size, {})
    fused, lean = make_step("cifar100", size, {"model.fused_attention": "true"})
    arms = {"default": default, "fused": fused}
    found = add_times({"default": found, "fused": lean}, arms, ROUNDS[size])
    return found | {"differences": attention_differences(size)}


def measure_promise(preset: str, size: str, target: str) -> Found:
    """Compile the R-Drop step of a preset as `rdrop_jax.compile` does."""
    if not target:
        return {"skipped": "rdrop_jax.compile does not know this device"}
    parsed = targets.parse(target)
    targets.set_environment(parsed)
    _, costs = compile_lib.compile_step(load(preset, size, {}), parsed)
    return asdict(costs) | {"needed": costs.needed}


def measure_torch(size: str, target: str) -> Found:
    """Measure the official formulation of the step of `cifar100` in PyTorch."""
    torch = import_torch()
    if not torch:
        return {"skipped": "PyTorch is not installed"}
    if size == "full" and not torch.cuda.is_available():
        return {"skipped": f"PyTorch {torch.__version__} finds no GPU"}
    from benchmarks import torch_vit
    from rdrop_jax.tasks.image_classification import vit_model

    config = load("cifar100", size, {})
    model, pixels = vit_model.make_model(config), config.data.image_size
    device = "cuda" if size == "full" else "cpu"
    images = torch.randn(config.batch_size, pixels, pixels, 3, device=device)
    labels = torch.randint(model.num_classes, (config.batch_size,), device=device)

    def make(compiled: bool) -> tuple[Arm, Found]:
        net = torch_vit.ViT(
            *model.size,
            classes=model.num_classes,
            patch=model.patch_size,
            patches=(pixels // model.patch_size) ** 2,
            dropout=model.dropout,
        ).to(device)
        step = torch_vit.make_step(
            net,
            images,
            labels,
            alpha=config.rdrop.alpha,
            compiled=compiled,
            tx=torch.optim.SGD(net.parameters(), 8e-3, momentum=0.9, fused=True),
            clip=config.optimizer.clip,
            dtype=torch.bfloat16,
        )
        begin = time.perf_counter()
        step()
        return step, {"first_step_seconds": time.perf_counter() - begin}

    eager, found = make(compiled=False)
    if device == "cuda":
        found["peak"] = torch.cuda.max_memory_allocated()
    arms, results = {"eager": eager}, {"eager": found}
    if size == "full":  # needs a C++ compiler on CPU
        arms["torch.compile"], results["torch.compile"] = make(compiled=True)
    return add_times(results, arms, ROUNDS[size]) | {"torch": torch.__version__}


def measure_vocabulary(size: str, target: str) -> Found:
    """Measure loss and gradients from hidden states, and the cross entropy alone."""
    import jax
    import jax.numpy as jnp

    from benchmarks import large_vocab
    from rdrop_jax import large_vocab_rdrop_loss

    positions, width, vocab = VOCABULARY[size]
    key = jax.random.key(0)
    arrays = (
        jax.random.normal(key, (2, positions, width), jnp.bfloat16),
        jax.random.normal(key, (width, vocab), jnp.bfloat16) * 0.05,
        jax.random.randint(key, (positions,), 0, vocab),
    )

    def cross_entropy(*arrays: jax.Array) -> jax.Array:
        return large_vocab_rdrop_loss(*arrays, alpha=0.0)[0]

    losses = {
        "ours": large_vocab.ours,
        "cross entropy": cross_entropy,
        "rdrop_loss of the logits": large_vocab.of_logits,
    }
    programs = {k: jax.value_and_grad(loss, (0, 1)) for k, loss in losses.items()}
    programs["matrix products alone"] = large_vocab.products
    arms: dict[str, Arm] = {}
    results: Found = {}
    available = device_memory("bytes_limit") or math.inf
    for name, program in programs.items():
        compiled, found = compiled_for(jax.jit(program), *arrays)
        if found["temporary"] > available:
            results[f"{name}, not run"] = found
            continue
        arms[name] = partial(large_vocab.ready, compiled, *arrays)
        arms[name]()
        results[name] = found | {"peak_so_far": device_memory("peak_bytes_in_use")}
    return add_times(results, arms, ROUNDS[size])


def measure_resume(name: str, size: str, target: str) -> Found:
    """Compare parameters of a run with those of a run resumed in a new process."""
    steps = RESUME_STEPS[size]
    fields = {"model.dtype": "bfloat16", "optimizer.schedule": "constant"}
    fields |= {"optimizer.warmup": "0", "checkpoint.every": str(steps // 2)}
    if name == "glue":
        fields |= {"data.buckets": "1"}  # fewer programs to compile
    if size == "small":
        fields |= {"model.layers": "1", "model.width": "32", "model.mlp_width": "32"}
    command = [
        sys.executable,
        "-m",
        "rdrop_jax.train",
        "--config",
        f"configs/{name}.py",
    ]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    found = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {"XLA_FLAGS": f"{found} {DETERMINISTIC}".strip()}
    with tempfile.TemporaryDirectory() as folder:
        for run, end in (("a", steps), ("b", steps // 2), ("b", steps)):
            argv = [f"--workdir={folder}/{run}", f"--config.total_steps={end}"]
            done = subprocess.run(
                [*command, *argv],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(done.stderr)
        if "resuming from step" not in done.stdout:
            raise SystemExit(f"expected a run that resumes, got\n{done.stdout}")
        from rdrop_jax.cli.run import open_run
        from rdrop_jax.pretrained.initialize import flatten

        runs = [flatten(open_run(Path(folder, x), "last").params) for x in "ab"]
    whole, resumed = runs
    different = [k for k, x in whole.items() if not np.array_equal(x, resumed[k])]
    return {"arrays": len(whole), "different": different}


def describe(size: str, target: str) -> Found:
    """Describe the device, with the name that `rdrop_jax.compile` has for it."""
    import jax

    device = jax.local_devices()[0]
    if size == "full" and device.platform != "gpu":
        raise InputError(
            f"benchmarks.gpu: expected a GPU, got {device.device_kind}. Run "
            '`pip install "jax[cuda12]"`, or set --size=small.'
        )
    kind = f'"{device.device_kind}'
    known = (name for name, chip in targets.CHIPS.items() if kind in chip.described)
    return {
        "device": device.device_kind,
        "platform": device.client.platform_version,
        "target": "cpu:1" if device.platform == "cpu" else next(known, ""),
        "size": size,
        "versions": versions(),
    }


PARTS: dict[str, Callable[[str, str], Found]] = {
    "device": describe,
    **{f"step_{preset}": partial(measure_step, preset) for preset in SMALL},
    "fused_cifar100": measure_fused,
    "torch_cifar100": measure_torch,
    "large_vocab": measure_vocabulary,
    **{f"resume_{x}": partial(measure_resume, x) for x in ("vit", "glue")},
    **{f"promise_{preset}": partial(measure_promise, preset) for preset in SMALL},
}
