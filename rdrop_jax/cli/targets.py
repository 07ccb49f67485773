"""Accelerators that `rdrop_jax.compile` compiles for. Importing it needs no jax."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdrop_jax.errors import InputError


@dataclass(frozen=True)
class Chip:
    """Published properties of one device.

    Attributes:
      memory: bytes.
      bandwidth: bytes per second between memory and cores.
      flops: peak bfloat16 operations per second, dense, accumulated in float32.
      described: the device as XLA's compiler for CUDA reads it; empty for a TPU.
    """

    memory: float | int
    bandwidth: float
    flops: float
    described: str = ""

    @property
    def usable(self) -> float:
        """Bytes that a step may use.

        On a GPU, jax reserves 75 % of the memory by default, and beyond that the
        compiler repeats operations to save memory.
        """
        return self.memory * (0.75 if self.described else 1.0)


def _gpu(
    name: str, memory: int, bandwidth: float, flops: float, **device: float | int
) -> Chip:
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(bandwidth),
        "device_memory_size": int(memory),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    major, minor = device.pop("major"), device.pop("minor")
    lines = [f"{key}: {value}" for key, value in (fields | device).items()]
    lines.append(f"cuda_compute_capability {{ major: {major} minor: {minor} }}")
    described = (
        f"gpu_device_info {{ {' '.join(lines)} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
        f'device_description_str: "{name}"'
    )
    return Chip(memory, bandwidth, flops, described)


# Memory, cores and clocks: device descriptions of the XLA compiler
# (github.com/openxla/xla, xla/backends/gpu/target_config/specs) and data sheets of
# NVIDIA. TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm,
# and their memory as the compiler of libtpu 0.0.42 reports it.
_HOPPER = {
    "shared_memory_per_core": 233472,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_block_optin": 232448,
    "major": 9,
    "minor": 0,
}
CHIPS = {
    "gpu:h100": _gpu(
        "NVIDIA H100 80GB HBM3", 84_942_979_072, 3.352e12, 989e12, **_HOPPER
    ),
    "gpu:h200": _gpu(
        "NVIDIA H200 141GB HBM3e", 151_397_597_184, 4.8e12, 989e12, **_HOPPER
    ),
    "gpu:a100-40": _gpu(
        "NVIDIA A100-SXM4-40GB",
        42_331_013_120,
        1.555e12,
        312e12,
        shared_memory_per_core=167936,
        threads_per_core_limit=2048,
        core_count=108,
        fpus_per_core=64,
        l2_cache_size=41943040,
        clock_rate_ghz=1.41,
        shared_memory_per_block_optin=166912,
        major=8,
        minor=0,
    ),
    "gpu:24g": _gpu(
        "NVIDIA GeForce RTX 4090",
        25_393_692_672,
        1.008e12,
        165e12,
        shared_memory_per_core=102400,
        threads_per_core_limit=1536,
        core_count=128,
        fpus_per_core=128,
        l2_cache_size=75497472,
        clock_rate_ghz=2.52,
        shared_memory_per_block_optin=101376,
        major=8,
        minor=9,
    ),
    # Simulated devices of this machine, to try the program; no properties are known.
    "cpu": Chip(float("inf"), float("inf"), float("inf")),
    "tpu:v4": Chip(30.75 * 2**30, 1.228e12, 275e12),
    "tpu:v5e": Chip(15.75 * 2**30, 0.819e12, 197e12),
    "tpu:v5p": Chip(95.74 * 2**30, 2.765e12, 459e12),
    "tpu:v6e": Chip(31.25 * 2**30, 1.640e12, 918e12),
}
_DEFAULT_TOPOLOGY = {"v4": "2x2x1", "v5e": "2x4", "v5p": "2x2x1", "v6e": "2x4"}
# Values of TPU_ACCELERATOR_TYPE by generation, without the number of chips.
_TPU_TYPES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
# Without a device there is no autotuning, and the compiler for CUDA finds no tile sizes
# of Triton products. Machine code is not optimized, because nothing is run.
_GPU_FLAGS = (
    "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false "
    "--xla_backend_optimization_level=0 --xla_gpu_disable_gpuasm_optimizations=true"
)


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: for example "gpu:h100:8" or "tpu:v5e:2x4".
      chip: properties of each device.
      topology: number of devices along each axis, such as "1x1x8".
    """

    name: str
    chip: Chip
    topology: str

    @property
    def kind(self) -> str:
        """The platform: "cpu", "gpu" or "tpu"."""
        return self.name.partition(":")[0]

    @property
    def count(self) -> int:
        """The number of devices."""
        return math.prod(map(int, self.topology.split("x")))


def parse(name: str) -> Target:
    """Parse a target.

    Args:
      name: "gpu:NAME[:DEVICES]" or "tpu:GENERATION[:TOPOLOGY]".

    Raises:
      InputError: an unknown chip, or a wrong number of devices or topology.
    """
    kind, _, rest = name.partition(":")
    chip, _, size = ("", "", rest) if kind == "cpu" else rest.partition(":")
    full = f"{kind}:{chip}".rstrip(":")
    known = CHIPS.get(full)
    if known is None:
        raise InputError(
            f"--target: expected one of {', '.join(CHIPS)}, then :DEVICES or, for a "
            f"TPU, :TOPOLOGY, got {name!r}"
        )
    tpu = kind == "tpu"
    size = size or (_DEFAULT_TOPOLOGY[chip] if tpu else "1")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}" if tpu else r"[1-9]\d*", size):
        example = "tpu:v5e:2x4" if tpu else "gpu:h100:8"
        raise InputError(f"--target: expected a name like {example}, got {name!r}")
    return Target(f"{full}:{size}", known, size if tpu else f"1x1x{size}")


def set_environment(target: Target) -> None:
    """Set the environment variables that the compiler needs, before jax is imported.

    Raises:
      InputError: the package of the compiler is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target.kind == "cpu":
        os.environ["JAX_NUM_CPU_DEVICES"] = str(target.count)
        return
    needed = "libtpu" if target.kind == "tpu" else "jax_plugins.xla_cuda12"
    if not _is_installed(needed):
        extra = "tpu" if target.kind == "tpu" else "cuda12"
        raise InputError(
            f"--target={target.name}: expected the package {needed}, which is not "
            f'installed. Run `pip install "jax[{extra}]"`, in a separate environment: '
            "the package changes how jax starts."
        )
    if target.kind == "tpu":
        generation = target.name.split(":")[1]
        os.environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": f"{_TPU_TYPES[generation]}-{target.count}",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{_GPU_FLAGS} {flags}".strip()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False


def devices(target: Target) -> Sequence[Any]:
    """Return descriptions of the devices, which programs can be compiled for."""
    import jax
    from jax.experimental import topologies

    if target.kind == "cpu":
        return jax.devices()[: target.count]
    if target.kind == "tpu":
        generation = target.name.split(":")[1]
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{generation}:{target.topology}",
            # The two cores of a chip form one device, as in a real process.
            **({"chip_config_name": "megacore"} if generation == "v4" else {}),
        )
    else:
        importlib.import_module("jax_plugins.xla_cuda12")  # registers the compiler
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=target.topology,
            target_config=target.chip.described,
        )
    return found.devices
