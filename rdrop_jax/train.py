"""python -m rdrop_jax.train --config configs/vit.py [--config.rdrop.alpha=0]"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import flags
from rdrop_jax.data import ready
from rdrop_jax.pretrained import families
from rdrop_jax.runtime import agreement, distributed, lock, paths, preemption
from rdrop_jax.runtime import workdir as workdir_lib


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains a config in a workdir, from where the workdir stands.

    With several processes each of them calls this, after `jax.distributed` was started.

    Args:
      config: as `rdrop_jax.flags.load` returns it.
      workdir: folder of the run; made if it is not there.

    Returns:
      What result.json holds.

    Raises:
      InputError: data that is missing, a workdir of another config or other data or in
        use, no space.
      Stopped: SIGTERM or SIGINT asked for it; what was done is saved.
      TrainingError: a loss that is not finite.
    """
    return _start(check(config, workdir), workdir)


def _start(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.stoppable())
        if not distributed.joined():
            _claim(config, workdir, stack)
            return _train(config, workdir, stop)
        agreement.check_equal("--config", config_lib.shared(config))
        distributed.agreed(lambda: _claim(config, workdir, stack))
        agreement.check_shared(workdir)
        return _train(config, workdir, stop)


def _claim(config: ConfigDict, workdir: Path, stack: contextlib.ExitStack) -> int:
    stack.enter_context(lock.held(workdir))
    workdir_lib.claim(config, workdir)
    return 0


def _train(config: ConfigDict, workdir: Path, stop: preemption.Stop) -> dict[str, Any]:
    # Imported here: what can be checked without jax has been checked by now.
    from rdrop_jax import loop, run, state, tasks

    def prepare() -> int:
        tasks.prepare(config, workdir, begun=workdir_lib.begun(workdir))
        return 0

    say = print if distributed.is_first() else lambda line: None
    say("reading the data")
    clock = time.perf_counter()
    distributed.agreed(prepare)  # by one process, before any of them reads it
    task = tasks.build(config, workdir)
    provenance = task.provenance()

    def claim_data() -> int:
        workdir_lib.claim_data(provenance, workdir)
        return 0

    agreement.check_equal("data", provenance)
    distributed.agreed(claim_data)
    resolved = config_lib.resolve(config, task.train_data().steps_per_epoch)
    if (seconds := time.perf_counter() - clock) > 5:
        say(f"read the data in {seconds:.0f} s")
    initialize = None
    if config.init_from and not distributed.agreed(lambda: workdir_lib.begun(workdir)):
        weights = run.open_weights(config.init_from, task)
        initialize = run.initializer(weights, task, config.reinit, say)
        if distributed.is_first():
            workdir_lib.record_init(workdir, config.init_from, weights.sha256)
    tx = state.make_tx(resolved)
    return loop.fit(task, tx, resolved, workdir, initialize=initialize, stop=stop)


def check(config: ConfigDict, workdir: Path) -> ConfigDict:
    """All that can be checked before jax starts.

    Returns:
      The config with what its dataset says of itself.

    Raises:
      InputError: data or weights that are missing, or a workdir of another config.
    """
    paths.workdir(workdir)
    paths.check_config(config)
    config = workdir_lib.resumed(ready.completed(config), workdir)
    workdir_lib.check(config, workdir)
    if config.init_from and not workdir_lib.begun(workdir):
        families.check(config)
    return config


def default_workdir(spec: str) -> Path:
    """``configs/vit.py:cifar100`` trains in ``runs/vit-cifar100``."""
    path, _, preset = spec.partition(":")
    return Path("runs", "-".join(filter(None, [Path(path).stem, preset])))


def main(argv: Sequence[str]) -> None:
    """Parses the command line and trains."""
    parser = flags.Parser(prog="rdrop_jax.train", description=__doc__)
    parser.add_argument("--config", metavar="FILE[:PRESET]", required=True)
    parser.add_argument(
        "--workdir", type=flags.path, help="default: runs/FILE[-PRESET]"
    )
    distributed.add_flags(parser)
    args, overrides = flags.parse(parser, argv)
    cluster = distributed.from_flags(args)
    config = flags.load(args.config, overrides)
    workdir = args.workdir or default_workdir(args.config)
    config = check(config, workdir)
    if cluster is None or distributed.start(cluster) == 0:
        print(f"config {args.config}, workdir {workdir}")
        print(flags.show(config), flush=True)
    _start(config, workdir)


if __name__ == "__main__":
    flags.run(main)
