"""Operations, bytes and collectives of traced and compiled programs."""

import math
import re
from collections import Counter
from typing import Any

_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


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


def compiler_counts(compiled: Any) -> tuple[float | None, float]:
    """Return operations, None for a GPU, and bytes moved, as XLA counts them."""
    import jax
    from jaxlib import _jax

    if costs := compiled.cost_analysis():
        return costs["flops"], costs["bytes accessed"]
    # Compiled for GPUs that the machine lacks: apply the cost model to the program. It
    # counts nothing for library calls.
    (module,) = compiled.runtime_executable().hlo_modules()
    client = jax.local_devices(backend="cpu")[0].client
    found = _jax.hlo_module_cost_analysis(client, module)
    return None, max(found["bytes accessed"], 0.0)


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


def count_recomputed(text: str) -> int:
    """Count the operations that the compiler repeats in order to save memory.

    Example:
      >>> count_recomputed("  %add.3.remat2 = f32[] add(%a, %b)\\n  %c = f32[] add(%a)")
      1
    """
    return len(
        re.findall(r"^\s*(?:ROOT )?%?[\w.-]+\.remat[\d.]* = ", text, re.MULTILINE)
    )


def memory_used(message: str) -> int | None:
    """Return the bytes that a program needs, from the error of the TPU's compiler."""
    found = re.search(r"Used ([\d.]+)([KMG]) of \S+ hbm", message) or re.search(
        r"\(([\d.]+)([KMG])\) exceeds available HBM", message
    )
    if found is None:
        return None
    return int(float(found[1]) * 1024 ** " KMG".index(found[2]))


def bytes_per_device(x: Any) -> int:
    """Return the bytes of a sharded array on one device."""
    shape = x.sharding.shard_shape(x.shape)
    return int(math.prod(shape) * x.dtype.itemsize)
