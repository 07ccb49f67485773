"""Start one program in several processes over loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


TINY = [
    "--config=configs/vit.py",
    "--config.total_steps=40",
    "--config.eval.every=20",
    "--config.checkpoint.every=5",
    "--config.log.every=5",
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.mlp_width=16",
    "--config.model.patch_size=4",
    # Plain SGD, so that rounding stays rounding, at a rate that may be stopped.
    "--config.optimizer.name=sgd",
    "--config.optimizer.lr=0.05",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup=0",
]


LIMIT = 120  # seconds for anything: what hangs must fail


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def command(name, *argv):
    return [sys.executable, "-u", "-m", f"rdrop_jax.{name}", *map(str, argv)]


class Processes:
    """The same program in several processes, all ended on the way out."""

    def __init__(
        self,
        name,
        *argv,
        count=2,
        devices=1,
        clusters=None,
        each=((), ()),
        variables=({}, {}),
    ):
        address = f"127.0.0.1:{free_port()}"
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        self.started = time.monotonic()
        self.processes = []
        for i in range(count):
            options = [f"--coordinator={address}", f"--num_processes={count}"]
            options += [f"--process_id={i}", "--heartbeat_timeout=5"]
            mine = {} if clusters is None else clusters(i, count, address)
            options = options if clusters is None else ["--distributed"]
            own = each[i] if i < len(each) else ()
            self.processes.append(
                subprocess.Popen(
                    command(name, *argv, *own, *(options if count > 1 else [])),
                    cwd=ROOT,
                    env=env | mine | variables[i % 2],
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for(self, words):
        """Reads the first process's lines until one begins with ``words``."""
        for line in self.processes[0].stdout:
            if line.startswith(words):
                return
        raise AssertionError(self.processes[0].stderr.read())

    def end(self, limit=LIMIT):
        """(exit code, output, errors) of each, lines of the transport left out."""
        ended = []
        for process in self.processes:
            left = self.started + limit - time.monotonic()
            out, err = process.communicate(timeout=max(left, 1))
            own = [x for x in out.splitlines() if not x.startswith("[Gloo]")]
            ended.append((process.returncode, "\n".join(own), err))
        return ended
