"""The training loop, shared by all tasks."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.core.objective import resolve_num_passes
from rdrop_jax.core.passes import EqualPassesError, Params, check_stochastic
from rdrop_jax.core.train_step import TrainState
from rdrop_jax.data.batches import prefetch
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.files.disk import check_space, read_json, write_json
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.checkpoint import Checkpoints, Progress
from rdrop_jax.training.distributed import agreed
from rdrop_jax.training.log_lines import (
    announced,
    data_line,
    run_record,
    start_lines,
    utc_now,
)
from rdrop_jax.training.mesh import make_mesh, put
from rdrop_jax.training.optim import make_schedule
from rdrop_jax.training.preemption import Stop
from rdrop_jax.training.state import abstract_state, begin, evaluated, make_step
from rdrop_jax.training.task import Task, direction
from rdrop_jax.training.window import LogSteps, Window
from rdrop_jax.training.writers import Writers, parameter_table


def fit(
    task: Task,
    tx: optax.GradientTransformation,
    config: ConfigDict,
    workdir: Path,
    *,
    initialize: Callable[[Params], Params] | None = None,
    stop: Stop | None = None,
) -> dict[str, Any]:
    """Train until ``total_steps``, resuming from the newest checkpoint in the workdir.

    Args:
      task: task to train.
      tx: optimizer.
      config: resolved config.
      workdir: folder of the run, for checkpoints and logs.
      initialize: function from random parameters to the initial ones of a new run.
      stop: request to stop, checked between steps; once set, the run saves and ends.

    Returns:
      The content of result.json: scores of the checkpoint with the best validation.

    Raises:
      InputError: the disk is full, or dropout masks do not differ between passes.
      Stopped: ``stop`` was set.
      TrainingError: the loss, gradient or update is not finite; names the step.
    """
    if config.eval.metric not in task.scores:
        raise InputError(
            f"eval.metric: expected one of {', '.join(task.scores)}, found "
            f"{config.eval.metric!r}"
        )
    started = utc_now()
    mesh = make_mesh(**config.mesh)
    abstract = abstract_state(task, tx, config, mesh)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    workdir.mkdir(parents=True, exist_ok=True)
    # In addition to the newest: the best, and the one being written.
    check_space(workdir, size * (config.checkpoint.keep + 2))
    stop = stop or Stop()
    with contextlib.ExitStack() as stack:
        writers = Writers(
            workdir, tensorboard=config.log.tensorboard, active=jax.process_index() == 0
        )
        stack.enter_context(contextlib.closing(writers))
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, say=writers.say)
        stack.enter_context(contextlib.closing(checkpoints))
        state, progress = begin(task, tx, config, abstract, checkpoints, initialize)
        writers.cut(int(state.step))
        writers.say(parameter_table(state.params))
        for line in start_lines(config, int(state.step)):
            writers.say(line)
        state, progress = train(
            task, tx, config, mesh, state, progress, checkpoints, writers, stop
        )
        checkpoints.wait()
        stop.check(f"at step {int(state.step)}: saved")
        return finish(
            task, config, mesh, workdir, state, progress, checkpoints, writers, started
        )


def train(
    task: Task,
    tx: optax.GradientTransformation,
    config: ConfigDict,
    mesh: Mesh,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    writers: Writers,
    stop: Stop,
) -> tuple[TrainState, Progress]:
    """Run the steps, each in this order: batch, update; if due, log, validate, save.

    Saving comes after validation, so that a checkpoint includes the score of its step.
    Other steps read nothing from the device. Once ``stop`` is set, saves and returns.
    """
    start, total = int(state.step), config.total_steps
    if start >= total or worn_out(config, progress):
        return state, progress
    if start:
        writers.say(f"going on from step {start}")
    data = task.train_data()
    for note in task.notes():
        writers.say(note)
    validate = task.evaluators["validation"](mesh)
    writers.say(data_line(task, data))
    schedule = make_schedule(config.optimizer, total)
    update = jax.jit(make_step(task, tx, config, mesh), donate_argnums=0)
    if config.rdrop.num_passes == 1 and config.rdrop.alpha > 0:
        writers.say(
            "rdrop.alpha: expected 0 for rdrop.num_passes=1, got "
            f"{config.rdrop.alpha}; training without R-Drop. Set rdrop.num_passes=2 to "
            "train with it"
        )
    writers.say("compiling the train step; a large model takes minutes")
    check_passes(task, config, state, put(mesh, data[start]))
    window = Window(start, progress.seconds)
    seconds = config_lib.log_seconds(config.log.every)
    logging = LogSteps(start, 0 if seconds else config.log.every, seconds, agreed)
    batches = prefetch(
        lambda t: put(mesh, data[t]),
        start,
        total,
        ahead=config.data.prefetch,
        late=lambda: window.idle(state.step),
    )
    stop.check(f"before step {start + 1}")
    for step, batch in enumerate(batches, start + 1):
        window.busy()
        with jax.transfer_guard("disallow"):
            state, metrics = update(state, batch)
        window.add(metrics)
        if step == start + 1:
            jax.block_until_ready(state)
            writers.say(f"compiled in {window.compiled(step):.1f} s")
            logging.compiled(step)
        last, stopping = step == total, stop.reached(step)
        logs = logging.due(step) or last
        validates, saves = (
            due(step, part.every) or last for part in (config.eval, config.checkpoint)
        )
        if logs or validates or saves or stopping:
            check_finite(state, checkpoints)
        if logs:
            values = window.read(step) | {"lr": float(schedule(step - 1))}
            writers.record(step, "train", values)
            rows = data.examples_per_step
            writers.say(train_line(config, values, step, window, rows), live=True)
            logging.logged(step)
        if validates:
            if progress.best_step < 0:
                writers.say("first validation; compiling takes part of its time")
            scores = announced("validated", validate, evaluated(state), writers.say)
            progress = judge(progress, step, higher_is_better(config, scores))
            writers.record(step, "validation", scores)
            writers.say(scores_line(f"step {step}  validation", scores))
        ends = last or stopping or worn_out(config, progress)
        progress = replace(progress, seconds=window.seconds())
        if saves or ends or progress.best_step == step:
            checkpoints.save(step, state, progress)
        if ends:
            break
    return state, progress


def finish(
    task: Task,
    config: ConfigDict,
    mesh: Mesh,
    workdir: Path,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    writers: Writers,
    started: str,
) -> dict[str, Any]:
    """Score the best checkpoint and write result.json.

    Test data are read here for the first time, and only if ``eval.test`` is True.
    """
    path, step = workdir / "result.json", int(state.step)
    result = stored_result(path, writers) or {}
    if agreed(lambda: int(result.get("step") == step)):
        writers.say(f"complete: {path} holds the result of step {step}")
        return result
    best, params = progress.best_step, evaluated(state)
    if best != step:
        best = checkpoints.pick("best")
    if best != step:
        params = checkpoints.restore_params(best, params, ema=config.optimizer.ema > 0)
    splits = [name for name in task.evaluators if name != "train"]
    splits = [n for n in splits if config.eval.test or not n.startswith("test")]
    result = {
        "step": step,
        "checkpoint_step": best,
        **{
            split: announced(
                f"scored {split}", task.evaluators[split](mesh), params, writers.say
            )
            for split in splits
        },
        "seconds": round(progress.seconds, 2),
        "data": task.provenance() | task.signatures(),
    }
    if init := workdir_lib.recorded_init(config, workdir):
        result["init"] = init
    result["run"] = run_record(started)
    if jax.process_index() == 0:
        write_json(path, result)
    for split in splits:
        writers.say(scores_line(f"best step {best}  {split}", result[split]))
    for line in task.samples(mesh)(params) if task.samples else ():
        writers.say(line)
    writers.say(f"trained in {result['seconds']} s; result in {path}")
    return result


def stored_result(path: Path, writers: Writers) -> dict[str, Any] | None:
    """Return the result of an earlier start; None if absent or invalid."""
    if not path.exists():
        return None
    try:
        result = read_json(path)
    except InputError as error:
        writers.say(f"{error}. Making it again")
        return None
    if type(result.get("step")) is not int:
        found = result.get("step", "none")
        writers.say(f"{path}: expected a step, found {found!r:.40}. Making it again")
        return None
    return result


def due(step: int, every: int) -> bool:
    """Return whether ``every`` divides ``step``; always False for ``every=0``."""
    return every > 0 and step % every == 0


def worn_out(config: ConfigDict, progress: Progress) -> bool:
    """Return whether ``eval.patience`` validations in a row brought no improvement."""
    return 0 < config.eval.patience <= progress.stale


def higher_is_better(config: ConfigDict, scores: dict[str, float]) -> float:
    """Return the selection score with a sign so that higher is better; NaN is worst."""
    score = scores[config.eval.metric]
    if math.isnan(score):
        return -math.inf
    return score if direction(config.eval.metric) == "max" else -score


def judge(progress: Progress, step: int, score: float) -> Progress:
    """Return the progress after a validation; only a higher score is an improvement."""
    if progress.best_step < 0 or score > progress.best_score:
        return replace(progress, best_step=step, best_score=score, stale=0)
    return replace(progress, stale=progress.stale + 1)


def check_finite(state: TrainState, checkpoints: Checkpoints) -> None:
    """Raise if the loss, gradient or update of any step so far was not finite."""
    bad = int(state.first_bad_step)
    if bad >= 0:
        checkpoints.wait()
        saved = checkpoints.steps()
        raise TrainingError(
            f"step {bad}: expected a finite loss, gradient and update, found NaN or "
            f"infinity; last checkpoint: step {saved[-1] if saved else 'none'}. "
            "A lower optimizer.lr, a warmup or optimizer.clip are what usually helps"
        )


def check_passes(task: Task, config: ConfigDict, state: TrainState, batch: Any) -> None:
    """Run `check_stochastic` if the step has more than one pass."""
    r = config.rdrop
    if resolve_num_passes(r.alpha, r.num_passes) == 1:
        return
    try:
        forward = task.pass_forwards() or task.forward
        check_stochastic(forward, state.params, batch, state.key)
    except EqualPassesError as error:
        raise InputError(f"rdrop.alpha={r.alpha}: {error}") from error


def train_line(
    config: ConfigDict,
    values: dict[str, float],
    step: int,
    window: Window,
    examples: float,
) -> str:
    """Format the training metrics as one line for the terminal."""
    speed = values.get("steps_per_second", 0.0) * examples
    wait = values.get("data_wait", 0.0)
    return (
        f"step {step}/{config.total_steps}  ce {values['ce']:.4f}  "
        f"kl {values['kl']:.4f}  lr {values['lr']:.2e}  {speed:.0f} examples/s  "
        f"ETA {window.eta(step, config.total_steps)}"
        + (f"  {wait:.0%} of the time waiting for data" if wait > 0.05 else "")
    )


def scores_line(title: str, scores: dict[str, float]) -> str:
    """Format scores as one line for the terminal."""
    return title + "".join(f"  {name} {value:.5g}" for name, value in scores.items())
