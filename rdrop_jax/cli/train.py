"""python -m rdrop_jax.train --config configs/vit.py [--config.rdrop.alpha=0]"""

import contextlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import flags
from rdrop_jax.files import paths
from rdrop_jax.pretrained import families
from rdrop_jax.training import agreement, distributed, lock, preemption
from rdrop_jax.training import workdir as workdir_lib


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Start or resume the training of a config in a workdir.

    With several processes, each calls this after `jax.distributed` is initialized.

    Args:
      config: config from `rdrop_jax.flags.load`.
      workdir: folder of the run; created if absent.

    Returns:
      The content of result.json.

    Raises:
      InputError: missing data, a full disk, or a workdir that is locked or has a
        different config or data.
      Stopped: SIGTERM or SIGINT requested it; progress is saved.
      TrainingError: the loss, gradient or update is not finite.
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
    # Imported here, after all checks that do not require jax.
    from rdrop_jax.cli import run
    from rdrop_jax.training import loop, state

    def prepare() -> int:
        tasks.prepare(config, workdir, begun=workdir_lib.begun(workdir))
        return 0

    say = print if distributed.is_first() else lambda line: None
    say("reading the data")
    clock = time.perf_counter()
    distributed.agreed(prepare)  # on process 0, before any process reads the data
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


def check(
    config: ConfigDict, workdir: Path, given: Collection[str] | None = None
) -> ConfigDict:
    """Check config, data and workdir as far as possible before jax starts.

    Args:
      config: config from `rdrop_jax.flags.load`.
      workdir: folder of the run.
      given: fields that the command line sets; None if unknown.

    Returns:
      The config, completed with facts from its dataset.

    Raises:
      InputError: missing data or weights, or a workdir with a different config.
    """
    paths.workdir(workdir)
    paths.check_config(config)
    config = workdir_lib.resumed(tasks.check(config), workdir, given)
    workdir_lib.check(config, workdir)
    if config.init_from and not workdir_lib.begun(workdir):
        families.check(config, tasks.families())
    return config


def default_workdir(spec: str) -> Path:
    """Return ``runs/vit-cifar100`` for ``configs/vit.py:cifar100``."""
    path, _, preset = spec.partition(":")
    return Path("runs", "-".join(filter(None, [Path(path).stem, preset])))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and train."""
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
    config = check(config, workdir, overrides)
    if cluster is None or distributed.start(cluster) == 0:
        print(f"config {args.config}, workdir {workdir}")
        print(flags.show(config), flush=True)
    _start(config, workdir)
