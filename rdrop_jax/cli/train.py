"""python -m rdrop_jax.train --config configs/vit.py [--config.rdrop.alpha=0]"""

import argparse
import contextlib
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.cli import checks, flags, profiler
from rdrop_jax.data.datasets import is_named
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub as hub_names
from rdrop_jax.files import paths
from rdrop_jax.pretrained import families, hub
from rdrop_jax.training import agreement, distributed, preemption, trackers
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.callbacks import Callback

if TYPE_CHECKING:  # imports jax
    from rdrop_jax.training.task import Task

_logger = logging.getLogger(__name__)


def train(
    config: ConfigDict,
    workdir: str | Path,
    task: "Task | None" = None,
    callbacks: Sequence[Callback] = (),
    given: Collection[str] | None = None,
) -> dict[str, Any]:
    """Start or resume the training of a config in a workdir.

    With several processes, each calls this after `jax.distributed` is initialized.

    Args:
      config: config from `rdrop_jax.flags.load`; with ``task``, any config that has the
        fields of `rdrop_jax.config.base_config`.
      workdir: folder of the run; created if absent.
      task: task to train; None builds the task that ``config.task`` names.
      callbacks: functions to call at logs, validations and saves.
      given: fields that the user sets; pretrained weights specify the others of the
        model. None if unknown.

    Returns:
      The content of result.json.

    Raises:
      InputError: missing data, a full disk, or a workdir that is locked or has a
        different config or data.
      Stopped: SIGTERM or SIGINT requested it; progress is saved.
      TrainingError: the loss, gradient or update is not finite.
    """
    workdir = Path(workdir)
    if task is None:
        config = check_start(config, workdir, given)
    elif not config.task:
        raise InputError("task: expected a name for the task, got ''")
    return _train_locked(config, workdir, task, callbacks)


def _train_locked(
    config: ConfigDict,
    workdir: Path,
    task: "Task | None" = None,
    callbacks: Sequence[Callback] = (),
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Lock the workdir and train in it; stop at the first SIGTERM or SIGINT."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.stoppable())

        def initialize_workdir() -> int:
            stack.enter_context(workdir_lib.locked(workdir))
            workdir_lib.initialize(config, workdir)
            return 0

        if distributed.joined():
            _check_commits(config, workdir, own=task is None)
            agreement.check_equal("--config", config_lib.shared(config))
            distributed.from_process_0(initialize_workdir)
            agreement.check_shared(workdir)
        else:
            initialize_workdir()  # before jax starts
        return _build_and_fit(config, workdir, task, callbacks, stop, profile)


def _check_commits(config: ConfigDict, workdir: Path, *, own: bool) -> None:
    """Check that the caches of all processes have the same commits of the Hub.

    A resumed run has checkpoints instead of weights and uses the recorded data.

    Args:
      config: config of the run.
      workdir: folder of the run.
      own: True for a task of this package, which reads ``data.name``.
    """
    if distributed.from_process_0(lambda: workdir_lib.has_checkpoint(workdir)):
        return
    names = {}
    if own and hub_names.is_name(name := config.data.name):
        from rdrop_jax.data import hub as data_hub

        commit = data_hub.load(name).provenance[name]
        names["data.name"] = hub_names.pinned("data.name", name, commit)
    if hub_names.is_name(config.init_from):
        commit = hub.commit_of(hub.located(config, workdir))
        names["init_from"] = hub_names.pinned("init_from", config.init_from, commit)
    agreement.check_same_commits(names)


def _build_and_fit(
    config: ConfigDict,
    workdir: Path,
    task: "Task | None",
    callbacks: Sequence[Callback],
    stop: preemption.Stop,
    profile: tuple[int, int] | None,
) -> dict[str, Any]:
    """Build the task, check its data and run the training loop."""
    # Imported here, after all checks that do not require jax.
    from rdrop_jax.cli import run
    from rdrop_jax.training import loop

    _logger.info("reading the data")
    clock = time.perf_counter()
    resuming = bool(
        distributed.from_process_0(lambda: workdir_lib.has_checkpoint(workdir))
    )
    local = config if resuming else hub.located(config, workdir)
    if task is None:
        task = tasks.build(local, workdir, resuming=resuming)
    else:
        tasks.check_applied(config, task)
    provenance = task.provenance()

    agreement.check_equal("data", provenance)
    distributed.write_on_process_0(lambda: workdir_lib.record_data(provenance, workdir))
    resolved = config_lib.resolve(config, task.train_data().steps_per_epoch)
    if (seconds := time.perf_counter() - clock) > 5:
        _logger.info("read the data in %.0f s", seconds)
    initialize = None
    if config.init_from and not resuming:
        weights = run.open_weights(local.init_from, task)
        initialize = run.initializer(weights, task, config.reinit)
        if distributed.is_first():
            workdir_lib.record_init(
                workdir, config.init_from, weights.sha256, hub.commit_of(local)
            )
    with contextlib.ExitStack() as stack:
        if profile:
            last, folder = resolved.total_steps, workdir / "profile"
            trace = profiler.traced(*profile, last=last, folder=folder)
            callbacks = [*callbacks, stack.enter_context(trace)]
        return loop.fit(
            task,
            resolved,
            workdir,
            initialize=initialize,
            stop=stop,
            callbacks=callbacks,
        )


def check_start(
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
      InputError: missing data, weights or packages, or a workdir with a different
        config.
    """
    paths.workdir(workdir)
    paths.check_config(config)
    trackers.check_installed(config.log.trackers)
    config = workdir_lib.resumed(config, workdir, given)
    commit = workdir_lib.recorded_commit(config, workdir)
    config = tasks.check_data(config, commit)
    if is_named(config.data.name):
        config = workdir_lib.with_stored_splits(config, workdir, given)
    workdir_lib.check_config(config, workdir)
    if config.init_from and not workdir_lib.has_checkpoint(workdir):
        return families.check_weights(config, tasks.families(), workdir, given)
    return config


def default_workdir(spec: str) -> Path:
    """Return ``runs/vit-cifar100`` for ``configs/vit.py:cifar100``."""
    path, _, preset = spec.partition(":")
    return Path("runs", "-".join(filter(None, [Path(path).stem, preset])))


def main(argv: Sequence[str]) -> None:
    """Parse the command line and train."""
    parser = flags.Parser(
        prog="rdrop_jax.train",
        description=__doc__,
        epilog=f"Fields that all tasks share:\n{config_lib.field_help()}".replace(
            "%", "%%"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE[:PRESET]", required=True)
    parser.add_argument(
        "--workdir", type=flags.path, help="default: runs/FILE[-PRESET]"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print the config and exit"
    )
    parser.add_argument(
        "--profile",
        type=profiler.steps,
        nargs="?",
        const="10:5",
        metavar="START:STEPS",
        help="trace STEPS steps after step START to WORKDIR/profile; default: 10:5",
    )
    distributed.add_flags(parser)
    args, overrides = flags.parse(parser, argv)
    cluster = distributed.from_flags(args)
    config = flags.load(args.config, overrides)
    if args.print_config:
        print(flags.show(config))
        return
    workdir = args.workdir or default_workdir(args.config)
    given, _ = config_lib.renamed(config.task, overrides)
    if not workdir_lib.has_checkpoint(workdir):
        checks.check_data_fields(config, given)
    config = check_start(config, workdir, given)
    if cluster is None or distributed.start(cluster) == 0:
        print(f"config {args.config}, workdir {workdir}")
        print(flags.show(config), flush=True)
    _train_locked(config, workdir, profile=args.profile)
