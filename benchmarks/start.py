"""The first step with an empty and with a filled compilation cache.

python -m benchmarks.start [--rounds 3]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.turns import ratio
from rdrop_jax.cli import process


def first_step() -> None:
    """Print the seconds of tracing, lowering, compiling and running one step."""
    process.tune()
    from benchmarks.step import make_step  # jax starts here
    from rdrop_jax.models.sizes import Size

    step = make_step(Size(6, 192, 3, 768), 64, 1.0, "hash")
    begin = time.perf_counter()
    step()
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    step()
    print(first - (time.perf_counter() - begin))


def measure(folder: str) -> float:
    """Measure the extra seconds of the first step in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.start", "--once"],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        first_step()
        return
    cold, warm = [], []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(measure(folder))
            warm.append(measure(folder))
    print(f"first step, empty cache: {min(cold):.2f} s, filled: {min(warm):.2f} s")
    print(f"filled over empty: {ratio(warm, cold)}")


if __name__ == "__main__":
    main()
