"""Train steps, PyTorch, a large vocabulary and exact resuming, measured on a GPU.

    python -m benchmarks.gpu --out RESULT.json [--part NAME ...] [--limit SECONDS]

Each part runs in a separate process, because the peak memory of a process cannot be
reset, for at most eight minutes. The file is written after each part. Parts that it
contains are skipped unless --part names them, so the same command resumes.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_parts import PARTS, SMALL
from rdrop_jax.cli import flags, process
from rdrop_jax.errors import InputError
from rdrop_jax.files import disk

PART_SECONDS = 480.0
Found = dict[str, Any]


def measure(name: str, size: str, target: str, seconds: float) -> Found | None:
    """Run a part in a new process; return None if the time is too short for it."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--measure", name]
    with subprocess.Popen(
        [*command, "--size", size, "--target", target],
        # Compile times do not count programs of earlier runs.
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(timeout=min(seconds, PART_SECONDS))
        except subprocess.TimeoutExpired:
            error = {"error": f"not finished in {PART_SECONDS:.0f} s"}
            return error if seconds >= PART_SECONDS else None
        finally:
            if child.poll() is None:  # with the programs that it started
                os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        return {"error": (err.strip() or "no message").splitlines()[-1]}
    found: Found = json.loads(out.splitlines()[-1])
    return found


def peaks_over_promises(parts: Found) -> dict[str, float]:
    """Divide the peak memory of each step by what `rdrop_jax.compile` promised."""
    ratios = {}
    for preset in SMALL:
        peak = parts.get(f"step_{preset}", {}).get("R-Drop", {}).get("peak")
        needed = parts.get(f"promise_{preset}", {}).get("needed")
        if peak and needed:
            ratios[preset] = peak / needed
    return ratios


def main(argv: Sequence[str]) -> None:
    """Run the parts that are missing, or those that are named."""
    parser = flags.Parser(prog="benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=flags.path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--limit", type=float, default=math.inf, metavar="SECONDS")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--measure", choices=PARTS, help="run it here; print JSON")
    parser.add_argument("--target", default="", help="the device, for --measure")
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(PARTS[args.measure](args.size, args.target)))
        return
    if args.out is None:
        raise InputError("--out: expected a file for the results, got none")
    end = time.monotonic() + args.limit
    device = measure("device", args.size, "", PART_SECONDS) or {}
    if "error" in device:
        raise InputError(device["error"].removeprefix("error: "))
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    if found.get("device", device) != device:
        raise InputError(
            f"--out: expected results of this device, size and versions, got those of "
            f"{found['device']}. Use another file."
        )
    parts = found.get("parts", {})
    for name in args.part or [x for x in PARTS if x not in ("device", *parts)]:
        left = end - time.monotonic()
        result = measure(name, args.size, device["target"], left) if left > 0 else None
        if result is None:
            print("the limit is reached: run the same command again")
            return
        parts[name] = result
        content = {"device": device, "parts": parts}
        content["peak_over_promise"] = peaks_over_promises(parts)
        disk.write_json(args.out, content)
        print(f"{name}: {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    process.run(main)
