"""python -m rdrop_jax.compile --config configs/vit.py:cifar100 --target tpu:v5e:2x4

Compiles the train step of a config at full size, by the real compiler of a GPU or TPU
that need not be there. Reads no data and no weights, and runs nothing.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import flags, targets
from rdrop_jax.errors import InputError

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Changes that ``--fit`` tries, in this order, each with the ones before it.
_REMAT = {"model.remat": "true"}


@dataclass(frozen=True)
class StepCosts:
    """Costs of one step on one device, as the compiler counts them.

    Attributes:
      parameters: number of parameters of the model.
      state: bytes of the train state and the batch.
      temporary: bytes of activations, gradients and other intermediate arrays.
      unaliased: bytes of outputs that do not reuse the state's memory.
      memory: bytes of the device; None if unknown.
      products: operations of matrix products and convolutions, counted in the traced
        program, all iterations of loops included.
      flops: all operations as the compiler counts them, which counts the body of a
        loop once; None for a GPU.
      bytes: bytes read and written by the compiled program, the body of a loop once.
      collectives: number of each collective operation in the program.
      seconds: time of the compilation.
      least_ms: minimum time of a step at peak operations and bandwidth; None if
        unknown.
    """

    parameters: int
    state: int
    temporary: int
    unaliased: int
    memory: int | None
    products: float
    flops: float | None
    bytes: float
    collectives: dict[str, int]
    seconds: float
    least_ms: float | None

    @property
    def needed(self) -> int:
        """Bytes of a step on one device."""
        return self.state + self.temporary + self.unaliased

    @property
    def fits(self) -> bool:
        """True if the step fits, or if the memory of the device is unknown."""
        return self.memory is None or self.needed <= self.memory


# Fields set, and bytes needed per device.
Attempt = dict[str, Any]


class OutOfMemory(InputError):
    """The compiler for TPUs found no program that fits.

    Attributes:
      needed: bytes that the step needs per device.
      state: bytes of the train state and the batch.
    """

    def __init__(self, needed: int, state: int, memory: float) -> None:
        super().__init__(
            f"--target: expected at most {_size(int(memory))} per device, got "
            f"{_size(needed)}. Run with --fit to find flags that fit."
        )
        self.needed, self.state = needed, state


def compile_step(config: ConfigDict, target: targets.Target) -> tuple[Any, StepCosts]:
    """Compile the train step of a config for a target.

    Args:
      config: config returned by `rdrop_jax.flags.load`.
      target: devices to compile for.

    Returns:
      The compiled step, and its costs.
    """
    import jax

    from rdrop_jax.training import state as state_lib
    from rdrop_jax.training.mesh import batch_sharding, make_mesh

    resolved = config_lib.resolve(config, 1000.0)
    devices = targets.devices(target)
    mesh = make_mesh(**resolved.mesh, devices=devices)
    task, shapes = tasks.abstract(resolved)
    tx = state_lib.make_tx(resolved)
    state = state_lib.abstract_state(task, tx, resolved, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
    step = jax.jit(state_lib.make_step(task, tx, resolved, mesh), donate_argnums=0)
    start = time.perf_counter()
    # The library reads the platform of this mesh, for example to choose chunk sizes.
    with jax.set_mesh(mesh):
        traced = step.trace(state, batch)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            needed = memory_used(str(error))
            if needed is None:
                raise
            state_bytes = sum(map(_bytes_per_device, jax.tree.leaves((state, batch))))
            raise OutOfMemory(needed, state_bytes, target.chip.memory) from error
    seconds = time.perf_counter() - start
    chip, found = target.chip, compiled.memory_analysis()
    products = count_products(traced.jaxpr.jaxpr) / mesh.size
    flops, moved = _compiler_counts(compiled)
    rates = ((products, chip.flops), (moved, chip.bandwidth))
    least = [x / rate for x, rate in rates if math.isfinite(rate)]
    return compiled, StepCosts(
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        state=found.argument_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        unaliased=found.output_size_in_bytes - found.alias_size_in_bytes,
        memory=int(chip.memory) if math.isfinite(chip.memory) else None,
        products=products,
        flops=flops,
        bytes=moved,
        collectives=count_collectives(compiled.as_text()),
        seconds=seconds,
        least_ms=1000 * max(least) if least else None,
    )


def memory_used(message: str) -> int | None:
    """Return the bytes that a program needs, from the error of the TPU's compiler."""
    found = re.search(r"Used ([\d.]+)([KMG]) of \S+ hbm", message)
    if found is None:
        return None
    return int(float(found[1]) * 1024 ** " KMG".index(found[2]))


def _bytes_per_device(x: Any) -> int:
    shape = x.sharding.shard_shape(x.shape)
    return int(math.prod(shape) * x.dtype.itemsize)


def _compiler_counts(compiled: Any) -> tuple[float | None, float]:
    """Return operations, None for a GPU, and bytes moved, as XLA counts them."""
    import jax
    from jaxlib import _jax

    if costs := compiled.cost_analysis():
        return costs["flops"], costs["bytes accessed"]
    # Compiled for GPUs that the machine lacks: apply the cost model to the program. It
    # knows the arrays of library calls, but not their operations.
    (module,) = compiled.runtime_executable().hlo_modules()
    client = jax.local_devices(backend="cpu")[0].client
    found = _jax.hlo_module_cost_analysis(client, module)
    return None, found["bytes accessed"]


def count_products(jaxpr: Any) -> float:
    """Count the operations of matrix products and convolutions of a traced program.

    Iterations of loops are included if their number is known.

    Example:
      >>> import jax
      >>> def power(x):
      ...     return jax.lax.fori_loop(0, 10, lambda i, y: x @ y, x)
      >>> count_products(jax.make_jaxpr(power)(jax.numpy.ones((4, 4))).jaxpr)
      1280.0
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        shapes = [v.aval.shape for v in eqn.invars if hasattr(v.aval, "shape")]
        if name == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            inner = math.prod(shapes[0][axis] for axis in contracted)
            total += 2 * inner * eqn.outvars[0].aval.size
        elif name == "conv_general_dilated":
            outputs = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            inner = math.prod(shapes[1]) // outputs
            total += 2 * inner * eqn.outvars[0].aval.size
        values = [params["jaxpr"]] if name == "shard_map" else params.values()
        nested = [
            count_products(getattr(part, "jaxpr", part))
            for value in values
            for part in (value if isinstance(value, tuple) else (value,))
            if hasattr(getattr(part, "jaxpr", part), "eqns")
        ]
        if name == "scan":
            total += params["length"] * sum(nested)
        elif name == "shard_map":
            total += params["mesh"].size * sum(nested)
        else:
            total += max(nested, default=0.0) if name == "cond" else sum(nested)
    return total


def count_collectives(text: str) -> dict[str, int]:
    """Count the collective operations in a compiled program.

    Example:
      >>> count_collectives("%a = f32[] all-reduce(%b), x\\n%c = all-reduce-done(%d)")
      {'all-reduce': 1}
    """
    names = "|".join(_COLLECTIVES)
    # Asynchronous operations have a start and a done; count the start.
    found = re.findall(rf"[ )]({names})(?:-start)?\(", text)
    return dict(Counter(found))


def fit(
    config: ConfigDict, overrides: dict[str, str], spec: str, target: targets.Target
) -> tuple[dict[str, str], StepCosts, list[Attempt]]:
    """Find the smallest change of a config whose step fits in the device's memory.

    Tries, in this order: no change, rematerialization, then both with 2, 4, ...
    microbatches; then the same with parameters sharded over 2, 4, ... devices.

    Args:
      config: config of the run.
      overrides: fields set by the user.
      spec: config file and preset.
      target: devices to compile for.

    Returns:
      The fields to set, the costs, and all attempts.

    Raises:
      InputError: no change fits.
    """
    tried: list[Attempt] = []
    for shards in _shards(config, overrides, target.count):
        last = None
        for change, accum in _changes(config, overrides):
            # At best, all temporary memory divides by the number of microbatches.
            if last and last[0] + last[1] * last[2] / accum > target.chip.memory:
                continue
            change = shards | change
            try:
                _, report = compile_step(flags.load(spec, overrides | change), target)
                needed, state = report.needed, report.state
            except OutOfMemory as error:
                report, needed, state = None, error.needed, error.state
            print(f"{_as_flags(change) or 'no change'}: {_size(needed)}", flush=True)
            tried.append({"set": change, "needed": needed})
            if report is not None and report.fits:
                return change, report, tried
            if state > target.chip.memory:
                break
            last = (state, needed - state, accum) if "model.remat" in change else None
    raise InputError(
        f"--fit: expected at most {_size(int(target.chip.memory))} per device, got "
        f"{_size(needed)} with {_as_flags(change)}. Use more devices or a "
        "smaller model."
    )


def _shards(
    config: ConfigDict, overrides: dict[str, str], devices: int
) -> Iterator[dict[str, str]]:
    """Yield changes of ``mesh.fsdp``, from none to all devices."""
    yield {}
    fsdp = 2
    while "mesh.fsdp" not in overrides and fsdp <= devices // config.mesh.tensor:
        yield {"mesh.fsdp": str(fsdp)}
        fsdp *= 2


def _changes(
    config: ConfigDict, overrides: dict[str, str]
) -> Iterator[tuple[dict[str, str], int]]:
    """Yield changes of rematerialization and microbatches, and the microbatches."""
    accum = config.accum_steps
    change: dict[str, str] = {}
    yield change, accum
    if "model.remat" not in overrides and not config.model.remat:
        change = _REMAT
        yield change, accum
    while config[config_lib.batch_field(config)] % (2 * accum) == 0:
        accum *= 2
        yield change | {"accum_steps": str(accum)}, accum


def _as_flags(change: dict[str, str]) -> str:
    return " ".join(f"--config.{name}={value}" for name, value in change.items())


def _size(count: int) -> str:
    if count < 2**30:
        return f"{count / 2**20:.1f} MiB"
    return f"{count / 2**30:.2f} GiB"


def table(report: StepCosts) -> str:
    """Format the costs of a step as a Markdown table."""
    rows = {
        "parameters": f"{report.parameters:,}",
        "state and batch": _size(report.state),
        "temporary": _size(report.temporary),
        "outputs in addition to the state": _size(report.unaliased),
        "memory of the device": (
            "unknown" if report.memory is None else _size(report.memory)
        ),
        "fits": "yes" if report.fits else "no",
        "operations of matrix products": f"{report.products:.3g}",
        "all operations, loops once": (
            "not counted" if report.flops is None else f"{report.flops:.3g}"
        ),
        "bytes moved, loops once": f"{report.bytes:.3g}",
        "minimum time of a step": (
            "unknown" if report.least_ms is None else f"{report.least_ms:.1f} ms"
        ),
        "collectives": ", ".join(f"{n} {k}" for k, n in report.collectives.items())
        or "none",
        "compiled in": f"{report.seconds:.0f} s",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| per device | |", "| --- | --- |", *lines])


def main(argv: Sequence[str]) -> None:
    """Parse the command line, compile, and print the costs."""
    parser = flags.Parser(prog="rdrop_jax.compile", description=__doc__)
    parser.add_argument("--config", metavar="FILE[:PRESET]", required=True)
    parser.add_argument("--target", required=True, help=", ".join(targets.CHIPS))
    parser.add_argument(
        "--fit", action="store_true", help="find the flags that fit in memory"
    )
    parser.add_argument("--json", type=flags.path, help="also write the costs here")
    args, overrides = flags.parse(parser, argv)
    target = targets.parse(args.target)
    # Weights are not read; a preset's file of weights need not exist.
    overrides = {"init_from": ""} | overrides
    config = flags.load(args.config, overrides)
    targets.set_environment(target)
    change: dict[str, str] = {}
    tried: list[Attempt] = []
    if args.fit:
        change, report, tried = fit(config, overrides, args.config, target)
        print(f"flags that fit: {_as_flags(change) or 'none needed'}")
    else:
        _, report = compile_step(config, target)
    print(f"{args.config}, {target.name}\n\n{table(report)}")
    if args.json is not None:
        found = {"config": args.config, "target": target.name, "set": change}
        found["tried"] = tried
        args.json.write_text(json.dumps(found | asdict(report)) + "\n")
