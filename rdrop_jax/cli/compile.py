"""python -m rdrop_jax.compile --config configs/vit.py:cifar100 --target tpu:v5e:2x4

Compiles a step of a config at full size, by the real compiler of a GPU or TPU
that need not be there. Reads no data and no weights, and runs nothing.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import flags, program_counts, targets
from rdrop_jax.errors import InputError

STEPS = ("train", "eval", "decode")
# Compiler options of ``--quick``.
_QUICK = {"exec_time_optimization_effort": -1.0}
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
      memory: bytes that a step may use; None if unknown.
      products: operations of matrix products and convolutions, counted in the traced
        program, all iterations of loops included.
      flops: all operations as the compiler counts them, which counts the body of a
        loop once; None for a GPU.
      bytes: bytes read and written by the compiled program, the body of a loop once;
        for a GPU without those of library calls, such as matrix products.
      recomputed: number of operations that the compiler repeats to save memory, in
        addition to ``model.remat``.
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
    recomputed: int
    collectives: dict[str, int]
    seconds: float
    least_ms: float | None

    @property
    def needed(self) -> int:
        """Bytes of a step on one device."""
        return self.state + self.temporary + self.unaliased

    @property
    def fits(self) -> bool:
        """True if the step fits, or if the usable memory is unknown."""
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


def compile_step(
    config: ConfigDict,
    target: targets.Target,
    step: str = "train",
    *,
    quick: bool = False,
) -> tuple[Any, StepCosts]:
    """Compile a step of a config for a target.

    Args:
      config: config returned by `rdrop_jax.flags.load`.
      target: devices to compile for.
      step: "train"; "eval", forward and loss without dropout; or "decode", the search
        or sampling of one batch of the longest inputs.
      quick: True to compile faster for a TPU, with fewer optimizations.

    Returns:
      The compiled step, and its costs.

    Raises:
      InputError: the task has no such step, or ``quick`` for another target.
      OutOfMemory: the compiler for TPUs found no program that fits.
    """
    import jax

    from rdrop_jax.training.mesh import make_mesh

    if quick and not target.name.startswith("tpu:"):
        raise InputError(f"--quick: expected a TPU as --target, got {target.name}")
    resolved = config_lib.resolve(config, 1000.0)
    mesh = make_mesh(**resolved.mesh, devices=targets.devices(target))
    run, state, batch = abstract_step(resolved, mesh, step)
    start = time.perf_counter()
    # The library reads the platform of this mesh, for example to choose chunk sizes.
    with jax.set_mesh(mesh):
        traced = run.trace(state, batch)
        try:
            compiled = traced.lower().compile(_QUICK if quick else None)
        except jax.errors.JaxRuntimeError as error:
            needed = program_counts.memory_used(str(error))
            if needed is None:
                raise
            state_bytes = sum(
                map(program_counts.bytes_per_device, jax.tree.leaves((state, batch)))
            )
            raise OutOfMemory(needed, state_bytes, target.chip.usable) from error
    seconds = time.perf_counter() - start
    params, text = getattr(state, "params", state), compiled.as_text()
    chip, found = target.chip, compiled.memory_analysis()
    products = program_counts.count_products(traced.jaxpr.jaxpr) / mesh.size
    flops, moved = program_counts.compiler_counts(compiled)
    rates = ((products, chip.flops), (moved, chip.bandwidth))
    least = [x / rate for x, rate in rates if math.isfinite(rate)]
    return compiled, StepCosts(
        parameters=sum(x.size for x in jax.tree.leaves(params)),
        state=found.argument_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        unaliased=found.output_size_in_bytes - found.alias_size_in_bytes,
        memory=int(chip.usable) if math.isfinite(chip.usable) else None,
        products=products,
        flops=flops,
        bytes=moved,
        recomputed=program_counts.count_recomputed(text),
        collectives=program_counts.count_collectives(text),
        seconds=seconds,
        least_ms=1000 * max(least) if least else None,
    )


def abstract_step(config: ConfigDict, mesh: Any, step: str) -> tuple[Any, Any, Any]:
    """Return a jitted step, and shapes and shardings of its state and batch."""
    import jax

    from rdrop_jax.core.passes import forward_passes
    from rdrop_jax.training import state as state_lib
    from rdrop_jax.training.mesh import batch_sharding

    def placed(shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
            for name, (shape, dtype) in shapes.items()
        }

    if step == "decode":
        task, decode, shapes = tasks.abstract_decode(config)
        return jax.jit(decode), state_lib.abstract_params(task, mesh), placed(shapes)
    task, shapes = tasks.abstract(config)
    if step == "train":
        tx = state_lib.make_tx(config)
        state = state_lib.abstract_state(task, tx, config, mesh)
        train_step = state_lib.make_step(task, tx, config, mesh)
        return jax.jit(train_step, donate_argnums=0), state, placed(shapes)
    sharded = task.step.sharded_loss if mesh.size > 1 else None
    loss = sharded(mesh) if sharded else task.loss

    def evaluate(params: Any, batch: Any) -> Any:
        outputs = forward_passes(
            lambda params, batch, _: task.forward(params, batch, None),
            params,
            batch,
            jax.random.key(0),
            num_passes=1,
            how="unroll",
            out_axes=task.step.out_axes,
        )
        return loss(outputs, batch, alpha=0.0)[1]

    rows, positions = config.eval.batch_size, config.eval.get("block_size")
    shapes = {
        name: ((rows, *([positions] if positions else shape[1:])), dtype)
        for name, (shape, dtype) in shapes.items()
    }
    return jax.jit(evaluate), state_lib.abstract_params(task, mesh), placed(shapes)


def fit(
    config: ConfigDict,
    overrides: dict[str, str],
    spec: str,
    target: targets.Target,
    step: str = "train",
    *,
    quick: bool = False,
) -> tuple[dict[str, str], StepCosts, list[Attempt]]:
    """Find the smallest change of a config whose step fits in the device's memory.

    Tries, in this order: no change, rematerialization, then both with 2, 4, ...
    microbatches; then the same with parameters sharded over 2, 4, ... devices.

    Args:
      config: config of the run.
      overrides: fields set by the user.
      spec: config file and preset.
      target: devices to compile for.
      step: see `compile_step`; only parameters are sharded for "eval" and "decode".
      quick: see `compile_step`.

    Returns:
      The fields to set, the costs, and all attempts.

    Raises:
      InputError: no change fits.
    """
    tried: list[Attempt] = []
    for shards in _shards(config, overrides, target.count):
        last = None
        for change, accum in _changes(config, overrides, step, target.count):
            # At best, all temporary memory divides by the number of microbatches.
            if last and last[0] + last[1] * last[2] / accum > target.chip.usable:
                continue
            change = shards | change
            try:
                changed = flags.load(spec, overrides | change)
                _, report = compile_step(changed, target, step, quick=quick)
                needed, state = report.needed, report.state
            except OutOfMemory as error:
                report, needed, state = None, error.needed, error.state
            print(f"{_as_flags(change) or 'no change'}: {_size(needed)}", flush=True)
            tried.append({"set": change, "needed": needed})
            if report is not None and report.fits:
                return change, report, tried
            if state > target.chip.usable:
                break
            last = (state, needed - state, accum) if "model.remat" in change else None
    raise InputError(
        f"--fit: expected at most {_size(int(target.chip.usable))} per device, got "
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
    config: ConfigDict, overrides: dict[str, str], step: str, devices: int
) -> Iterator[tuple[dict[str, str], int]]:
    """Yield changes of rematerialization and microbatches, and the microbatches."""
    accum = config.accum_steps
    change: dict[str, str] = {}
    yield change, accum
    if step != "train":
        return
    if "model.remat" not in overrides and not config.model.remat:
        change = _REMAT
        yield change, accum
    # Rows that devices do not need would fill up small microbatches.
    name, rows = "data.rows_multiple", config.data.get("rows_multiple", 0)
    if name not in overrides and rows > devices:
        change = change | {name: str(devices)}
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
        "usable memory": ("unknown" if report.memory is None else _size(report.memory)),
        "fits": "yes" if report.fits else "no",
        "operations of matrix products": f"{report.products:.3g}",
        "all operations, loops once": (
            "not counted" if report.flops is None else f"{report.flops:.3g}"
        ),
        "bytes moved, loops once": f"{report.bytes:.3g}",
        "operations repeated by the compiler to save memory": report.recomputed,
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
    parser.add_argument(
        "--step", choices=STEPS, default=STEPS[0], help="default: train"
    )
    parser.add_argument(
        "--quick", action="store_true", help="TPUs: compile faster, optimize less"
    )
    parser.add_argument("--json", type=flags.path, help="also write the costs here")
    args, overrides = flags.parse(parser, argv)
    target = targets.parse(args.target)
    config = flags.load(args.config, overrides)
    targets.set_environment(target)
    change: dict[str, str] = {}
    tried: list[Attempt] = []
    if args.fit:
        change, report, tried = fit(
            config, overrides, args.config, target, args.step, quick=args.quick
        )
        print(f"flags that fit: {_as_flags(change) or 'none needed'}")
    else:
        _, report = compile_step(config, target, args.step, quick=args.quick)
    print(f"{args.config}, {target.name}, {args.step} step\n\n{table(report)}")
    if args.json is not None:
        found = {"config": args.config, "target": target.name, "step": args.step}
        found |= {"set": change, "tried": tried, "quick": args.quick}
        args.json.write_text(json.dumps(found | asdict(report)) + "\n")
