"""Read access to a finished or running run."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax import tasks
from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.data import splits
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums
from rdrop_jax.pretrained import families, weight_files
from rdrop_jax.pretrained.initialize import Weights, flatten, merge
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.checkpoint import Checkpoints
from rdrop_jax.training.mesh import make_mesh
from rdrop_jax.training.state import abstract_params
from rdrop_jax.training.task import Predictor, Task

_AVERAGE = "average:"
# Fields that determine the validation rows, and all but the fold also the test rows
# that are held out.
_FOLD = "data.fold"
_HELD_OUT = (
    *("data.name", "data.files.train", "data.files.validation", "data.validation"),
    *("data.test", "data.folds", _FOLD, "data.columns.group", "data.split_seed"),
    *("data.columns.label", "data.quoting"),
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Config, task and parameters of a run, for evaluation and prediction.

    Attributes:
      config: config of the run.
      task: task built from the config.
      mesh: mesh over this machine's devices.
      params: parameters of a checkpoint, or their moving average if the run keeps one.
      step: step of that checkpoint; the newest step if several are averaged.
      unlike: fields of the held-out rows, and data files, in which averaged runs
        differ.
    """

    config: ConfigDict
    task: Task
    mesh: Mesh
    params: Params
    step: int
    unlike: tuple[str, ...] = ()

    def check_split(self, split: str) -> None:
        """Check the name of a split to score.

        Raises:
          InputError: an unknown split, or rows that trained one of the runs.
        """
        if split not in self.task.evaluators:
            known = ", ".join(self.task.evaluators)
            raise InputError(f"--split: expected one of {known}, found {split!r}")
        fields, averaging = self.unlike, self.task.averaging
        if split == "test":  # the same for all folds, and never trained on if separate
            drawn = averaging is not None and fields and split in averaging.drawn()
            fields = tuple(f for f in fields if drawn and f != _FOLD)
        if fields and split in ("validation", "test"):
            raise InputError(
                f"--split: expected runs with the same {fields[0]}, because other runs "
                f"were trained on {split} rows of the first one, found {split}. Score "
                "each workdir alone"
            )

    def predictor(self) -> Predictor:
        """Make the predictor of the task.

        Raises:
          InputError: the task has none.
        """
        if self.task.predictor is None:
            raise InputError(
                f"--workdir: expected a task with predictions, found {self.config.task}"
            )
        return self.task.predictor(self.mesh)


def open_run(
    workdir: str | Path,
    checkpoint: str = "best",
    config: ConfigDict | None = None,
    task: Task | None = None,
) -> Run:
    """Open a workdir read-only, also while it is being trained.

    Args:
      workdir: folder of the run. If the machine has another number of devices than the
        run's mesh, rows are split over all of them.
      checkpoint: "best" on validation, "last", a step, or "average:N", the mean of the
        parameters of the N newest.
      config: config of the run, whose ``eval`` and ``mesh`` fields may differ; None
        reads the stored one.
      task: task of the run, if ``config.task`` is not one of the package.

    Returns:
      The run with its parameters.

    Raises:
      InputError: no run there, no such checkpoint, or a ``mesh`` other than the stored
        one that does not fit the devices.
    """
    workdir = Path(workdir)
    config = config or workdir_lib.read(workdir)
    task = task or tasks.build(config, workdir)
    return _restored(workdir, checkpoint, config, task, _mesh(config, workdir))


def _restored(
    workdir: Path, checkpoint: str, config: ConfigDict, task: Task, mesh: Mesh
) -> Run:
    """Restore the parameters of a run on a mesh."""
    abstract = abstract_params(task, mesh)
    ema = config.optimizer.ema > 0
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:

        def load(step: int) -> Params:
            return checkpoints.restore_params(step, abstract, ema=ema)

        if checkpoint.startswith(_AVERAGE):
            steps = checkpoints.newest(checkpoint.removeprefix(_AVERAGE))
            step, params = steps[0], averaged(load, steps)
        else:
            step, params = checkpoints.read(checkpoint, load)
    return Run(config, task, mesh, params, step)


def _mesh(config: ConfigDict, workdir: Path) -> Mesh:
    """Return the mesh of a run, or all devices on ``data`` if it does not fit them."""
    try:
        return make_mesh(**config.mesh)
    except InputError:
        if config.mesh != workdir_lib.read(workdir).mesh:
            raise
    mesh = make_mesh()
    _logger.info("mesh: data=%d instead of the run's %s", mesh.size, config.mesh)
    return mesh


def open_runs(
    workdirs: Sequence[Path], checkpoint: str = "best", config: ConfigDict | None = None
) -> Run:
    """Open several runs as one, whose outputs are the average of theirs.

    Args:
      workdirs: folders of the runs. Classes and preprocessing are the same; models,
        seeds and training data may differ.
      checkpoint: see `open_run`.
      config: config of the first run, whose data, ``eval`` fields and mesh are used.

    Returns:
      The run; its parameters are a tuple.

    Raises:
      InputError: no such run or checkpoint, or runs that cannot be averaged.
    """
    config = config or workdir_lib.read(workdirs[0])
    if len(workdirs) == 1:
        return open_run(workdirs[0], checkpoint, config)
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        names = ", ".join(map(str, workdirs))
        raise InputError(f"--workdir: expected different runs, found {names}")
    configs = [config, *map(workdir_lib.read, workdirs[1:])]
    shared = [{"task": each.task} for each in configs]
    _check_equal(workdirs, shared)
    for each in configs[1:]:
        with each.unlocked():
            each.data.dir = config.data.dir
    others = zip(configs[1:], workdirs[1:], strict=True)
    built = [tasks.build(c, w) for c, w in others]
    averaging = built[0].averaging
    if averaging is None:
        raise InputError(
            f"--workdir: expected one run of task {config.task}, which averages no "
            f"outputs, found {len(workdirs)} runs"
        )

    def averaged(first: Forward) -> Forward:
        forwards = [first, *(task.forward for task in built)]

        def forward(params: Params, batch: Batch, key: Key | None) -> jax.Array:
            each = zip(forwards, params, strict=True)
            return averaging.mean(jnp.stack([f(p, batch, key) for f, p in each]))

        return forward

    built.insert(0, tasks.build(config, workdirs[0], averaged=averaged))
    _check_equal(workdirs, [t.averaging.shared() for t in built if t.averaging])
    mesh = _mesh(config, workdirs[0])
    runs = [
        _restored(w, checkpoint, c, t, mesh)
        for w, c, t in zip(workdirs, configs, built, strict=True)
    ]
    return Run(
        config,
        built[0],
        mesh,
        tuple(run.params for run in runs),
        max(run.step for run in runs),
        _unlike(configs) + _unlike_files(workdirs),
    )


def _check_equal(workdirs: Sequence[Path], values: Sequence[Mapping[str, Any]]) -> None:
    """Check that all runs have the values of the first one."""
    for workdir, other in zip(workdirs, values, strict=True):
        for name, value in values[0].items():
            one, found = value, other.get(name)
            if one == found:
                continue
            if isinstance(one, list) and isinstance(found, list):
                pairs = itertools.zip_longest(one, found)
                one, found = next((a, b) for a, b in pairs if a != b)
            raise InputError(
                f"--workdir: expected runs with the same {name}, found {one!r:.60} in "
                f"{workdirs[0]} and {found!r:.60} in {workdir}"
            )


def _unlike(configs: Sequence[ConfigDict]) -> tuple[str, ...]:
    """Return the fields of the held-out rows in which runs differ."""
    flat = [config_lib.flatten(each.data, "data.") for each in configs]
    return tuple(n for n in _HELD_OUT if any(f.get(n) != flat[0].get(n) for f in flat))


def _unlike_files(workdirs: Sequence[Path]) -> tuple[str, ...]:
    """Return the data files, other than those of the test, whose contents differ."""
    files = workdir_lib.read(workdirs[0]).data.get("files", {})
    test = str(files.get("test") or "test")
    sums, *others = map(workdir_lib.recorded_data, workdirs)
    first = {
        name: sum
        for name, sum in sums.items()
        if not _is_of_test(name, test, sums) and name != splits.VALIDATION_ROWS
    }
    differ = {name for x in others for name in workdir_lib.changed_files(x, first)}
    return tuple(f"content of {name}" for name in first if name in differ)


def _is_of_test(name: str, test: str, names: Collection[str]) -> bool:
    """Return whether a recorded name is of the test data.

    Args:
      name: the name; version 0.1 recorded it without folders, or with a full path.
      test: ``data.files.test``, or "test".
      names: all recorded names.
    """
    if name.startswith(test) or Path(name).name.startswith("test"):
        return True
    return test not in names and Path(name).name == Path(test).name


def averaged(load: Callable[[int], Params], steps: Sequence[int]) -> Params:
    """Average parameters of several steps in float32, at most two in memory at once."""
    total = load(steps[0])
    for step in steps[1:]:
        total = jax.tree.map(jnp.add, total, load(step))
    return jax.tree.map(lambda x: x / len(steps), total)


def open_weights(name: str, task: Task) -> Weights:
    """Load the weights that ``init_from`` names.

    Args:
      name: a workdir, WORKDIR:STEP, or a file or folder that the task can read.
      task: task that will use the weights.

    Returns:
      The weights.

    Raises:
      InputError: not such a file or folder, or corrupt.
    """
    path = Path(name)
    if weight_files.is_weights(path):
        if task.pretrained is None:
            raise families.only_workdirs(name)
        return task.pretrained.read(path)
    workdir, checkpoint = workdir_lib.split_checkpoint(name)
    run = open_run(workdir, checkpoint)
    family = run.task.pretrained
    facts = {} if family is None else family.facts
    classes = (family.classes or ()) if family else ()
    sums = workdir / "checkpoints" / f"step_{run.step}" / checksums.NAME
    digests = {f"step_{run.step}/{checksums.NAME}": checksums.sha256(sums)}
    return Weights(flatten(run.params), facts, sha256=digests, classes=classes)


def initializer(
    weights: Weights, task: Task, reinit: str
) -> Callable[[Params], Params]:
    """Return a function that replaces new parameters by pretrained weights.

    Args:
      weights: weights from `open_weights`.
      task: task that will use the weights.
      reinit: parts to re-initialize, separated by commas.

    Returns:
      A function from new parameters to the initial parameters of the run.
    """
    family = task.pretrained

    def initialize(new: Params) -> Params:
        params, notes = merge(
            new,
            weights,
            facts=family.facts if family else {},
            resize=family.resize if family else {},
            reinit=family.reinit if family else (),
            fresh=[part.strip() for part in reinit.split(",") if part.strip()],
            classes=family.classes if family else None,
        )
        for note in notes:
            _logger.info("init_from: %s", note)
        return params

    return initialize
