"""python -m rdrop_jax.compile --config configs/vit.py:cifar100 --target tpu:v5e:2x4

Compiles the train step of a config at full size, by the real compiler of a GPU or TPU
that need not be there. Reads no data and no weights, and runs nothing.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Sequence
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
      flops: floating-point operations; None if the compiler does not count them.
      bytes: bytes read and written; None if the compiler does not count them.
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
    flops: float | None
    bytes: float | None
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
        compiled = step.lower(state, batch).compile()
    seconds = time.perf_counter() - start
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return compiled, make_report(compiled, target.chip, parameters, seconds)


def make_report(
    compiled: Any, chip: targets.Chip, parameters: int, seconds: float
) -> StepCosts:
    """Read the costs of a compiled step."""
    found = compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    flops, moved = costs.get("flops"), costs.get("bytes accessed")
    rates = ((flops, chip.flops), (moved, chip.bandwidth))
    least = [x / rate for x, rate in rates if x and math.isfinite(rate)]
    return StepCosts(
        parameters=parameters,
        state=found.argument_size_in_bytes,
        temporary=found.temp_size_in_bytes,
        unaliased=found.output_size_in_bytes - found.alias_size_in_bytes,
        memory=int(chip.memory) if math.isfinite(chip.memory) else None,
        flops=flops,
        bytes=moved,
        collectives=count_collectives(compiled.as_text()),
        seconds=seconds,
        least_ms=1000 * max(least) if least else None,
    )


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
) -> tuple[dict[str, str], StepCosts]:
    """Find the smallest change of a config whose step fits in the device's memory.

    Tries, in this order: no change, rematerialization, then both with 2, 4, ...
    microbatches.

    Args:
      config: config of the run.
      overrides: fields set by the user.
      spec: config file and preset.
      target: devices to compile for.

    Returns:
      The fields to set, and the costs.

    Raises:
      InputError: no change fits.
    """
    tried: list[dict[str, str]] = [{}]
    if "model.remat" not in overrides and not config.model.remat:
        tried.append(_REMAT)
    accum = 2 * config.accum_steps
    while config[config_lib.batch_field(config)] % accum == 0:
        tried.append(tried[-1] | {"accum_steps": str(accum)})
        accum *= 2
    for change in tried:
        _, report = compile_step(flags.load(spec, overrides | change), target)
        print(f"{_as_flags(change) or 'no change'}: {_size(report.needed)}", flush=True)
        if report.fits:
            return change, report
    raise InputError(
        f"--fit: expected at most {_size(report.memory or 0)} per device, got "
        f"{_size(report.needed)} with {_as_flags(tried[-1])}. Use more devices with "
        "--config.mesh.fsdp, or a smaller model."
    )


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
        "operations": "not counted" if report.flops is None else f"{report.flops:.3g}",
        "bytes moved": "not counted" if report.bytes is None else f"{report.bytes:.3g}",
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
    if args.fit:
        change, report = fit(config, overrides, args.config, target)
        print(f"flags that fit: {_as_flags(change) or 'none needed'}")
    else:
        _, report = compile_step(config, target)
    print(f"{args.config}, {target.name}\n\n{table(report)}")
    if args.json is not None:
        found = {"config": args.config, "target": target.name, "set": change}
        args.json.write_text(json.dumps(found | asdict(report)) + "\n")
