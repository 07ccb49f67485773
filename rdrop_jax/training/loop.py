"""The training loop, shared by all tasks."""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.core.passes import EqualPassesError, Params, check_stochastic, with_views
from rdrop_jax.core.train_state import TrainState
from rdrop_jax.core.train_step import Step
from rdrop_jax.data.batches import prefetch
from rdrop_jax.errors import InputError, TrainingError
from rdrop_jax.files.disk import check_space, write_json
from rdrop_jax.training import direction
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.callbacks import Callback, notify
from rdrop_jax.training.checkpoint import Checkpoints, Progress, missing_checkpoints
from rdrop_jax.training.distributed import from_process_0
from rdrop_jax.training.log_lines import (
    data_line,
    parameter_table,
    run_record,
    scores_line,
    start_lines,
    timed,
    train_line,
    utc_now,
)
from rdrop_jax.training.mesh import make_mesh, shard_batch
from rdrop_jax.training.optim import Schedule, make_optimizer, make_schedule
from rdrop_jax.training.preemption import Stop
from rdrop_jax.training.state import (
    abstract_state,
    eval_params,
    initial_state,
    make_step,
)
from rdrop_jax.training.task import Evaluator, RandomAccess, Task
from rdrop_jax.training.window import LogSteps, Window
from rdrop_jax.training.writers import MetricsWriter

_logger = logging.getLogger(__name__)


def fit(
    task: Task,
    config: ConfigDict,
    workdir: Path,
    *,
    initialize: Callable[[Params], Params] | None = None,
    stop: Stop | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train until ``total_steps``, resuming from the newest checkpoint in the workdir.

    Args:
      task: task to train.
      config: resolved config.
      workdir: folder of the run, for checkpoints and logs.
      initialize: function from random parameters to the initial ones of a new run.
      stop: request to stop, checked between steps; once set, the run saves and ends.
      callbacks: functions to call at logs, validations and saves.

    Returns:
      The content of result.json, with scores of the best checkpoint.

    Raises:
      InputError: the disk is full, dropout masks do not differ between passes, or the
        task has no validation data.
      Stopped: ``stop`` was set.
      TrainingError: the loss, gradient or update is not finite; names the step.
    """
    if config.eval.metric not in task.scores:
        raise InputError(
            f"eval.metric: expected one of {', '.join(task.scores)}, found "
            f"{config.eval.metric!r}"
        )
    if "validation" not in task.evaluators:
        raise InputError(
            f"task: expected an evaluator named validation, found {[*task.evaluators]}"
        )
    started, stop = utc_now(), stop or Stop()
    config = with_num_passes(config)
    schedule = make_schedule(config.optimizer, config.total_steps)
    tx = make_optimizer(config.optimizer, schedule)
    mesh = make_mesh(**config.mesh)
    abstract = abstract_state(task, tx, config, mesh)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    workdir.mkdir(parents=True, exist_ok=True)
    copies = missing_checkpoints(workdir, config.checkpoint.keep, config.total_steps)
    check_space(workdir, size * copies)
    writer = MetricsWriter(workdir, config.log.trackers, config_lib.flatten(config))
    with (
        contextlib.closing(writer) as metrics,
        contextlib.closing(Checkpoints(workdir, config.checkpoint.keep)) as checkpoints,
    ):
        state, progress = initial_state(
            task, tx, config, abstract, checkpoints, initialize
        )
        step = int(state.step)
        metrics.resume(step)
        for line in (parameter_table(state.params), *start_lines(config, step)):
            _logger.info(line)
        trainer = Trainer(
            task=task,
            config=config,
            workdir=workdir,
            mesh=mesh,
            schedule=schedule,
            train_step=make_step(task, tx, config, mesh),
            checkpoints=checkpoints,
            metrics=metrics,
            stop=stop,
            callbacks=callbacks,
            state=state,
            progress=progress,
        )
        trainer.run_steps()
        checkpoints.wait()
        stop.raise_if_requested(f"at step {int(trainer.state.step)}: saved")
        return trainer.write_result(started)


@dataclass
class Trainer:
    """Training of one run, with everything that its steps and its result need.

    Attributes:
      task: task to train.
      config: resolved config.
      workdir: folder of the run.
      mesh: device mesh.
      schedule: learning rate by step.
      train_step: function from state and batch to state and metrics, not jitted.
      checkpoints: checkpoints of the run.
      metrics: writer of metrics.jsonl and the trackers.
      stop: request to stop.
      callbacks: functions to call at logs, validations and saves.
      state: train state after the last step; donated to the next one.
      progress: record of the run's progress after the last step.
    """

    task: Task
    config: ConfigDict
    workdir: Path
    mesh: Mesh
    schedule: Schedule
    train_step: Step
    checkpoints: Checkpoints
    metrics: MetricsWriter
    stop: Stop
    callbacks: Sequence[Callback]
    state: TrainState
    progress: Progress

    def scored(self) -> list[str]:
        """Return the splits that the run scores; test data if ``eval.test`` is True."""
        test = self.config.eval.test
        names = (name for name in self.task.evaluators if name != "train")
        return [name for name in names if test or not name.startswith("test")]

    @functools.cached_property
    def evaluators(self) -> dict[str, Evaluator]:
        """Evaluators of all scored splits. Making one reads its data.

        They are made before the first step, so that a fault of test data is an error
        then. Test data are scored at the end.
        """
        return {name: self.task.evaluators[name](self.mesh) for name in self.scored()}

    def run_steps(self) -> None:
        """Run the steps, each in the order: batch, update; if due, log, validate, save.

        Saving comes after validation, so that a checkpoint includes the score of its
        step. Other steps read nothing from the device. A stop saves and returns.
        """
        config, start = self.config, int(self.state.step)
        if start >= config.total_steps or self.out_of_patience():
            return
        if start:
            _logger.info("resuming from step %d", start)
        data = self.task.train_data()
        evaluators = timed("opened the data to score", lambda: self.evaluators)
        validate = evaluators["validation"]
        self._log_setup(data)
        check_passes(self.task, config, self.state, shard_batch(self.mesh, data[start]))
        window = Window(start, self.progress.seconds)
        seconds = config_lib.log_seconds(config.log.every)
        log_steps = LogSteps(
            start, 0 if seconds else config.log.every, seconds, from_process_0
        )
        for step, metrics in self._updates(data, window, log_steps):
            window.add(metrics)
            notify(self.callbacks, "step", step, self.state)
            last, stopping = step == config.total_steps, self.stop.reached(step)
            logs = log_steps.due(step) or last
            validates = last or due(step, config.eval.every)
            saves = last or stopping or due(step, config.checkpoint.every)
            if logs or validates or saves:
                check_finite(self.state, self.checkpoints)
            if logs:
                self._log(step, window, data.examples_per_step)
                log_steps.logged(step)
            if validates:
                with window.paused():
                    self._validate(step, validate)
            ends = last or stopping or self.out_of_patience()
            self.progress = replace(self.progress, seconds=window.seconds())
            if saves or ends or self.progress.best_step == step:
                with window.paused():
                    self.checkpoints.save(step, self.state, self.progress)
                    notify(self.callbacks, "save", step, self.state)
            if ends:
                return

    def _updates(
        self, data: RandomAccess, window: Window, log_steps: LogSteps
    ) -> Iterator[tuple[int, Any]]:
        """Update the state with every batch; yield the step and its metrics."""
        start = int(self.state.step)
        update = jax.jit(self.train_step, donate_argnums=0)
        batches = prefetch(
            lambda t: shard_batch(self.mesh, data[t]),
            start,
            self.config.total_steps,
            ahead=self.config.data.prefetch,
            late=lambda: window.idle(self.state.step),
        )
        self.stop.raise_if_requested(f"before step {start + 1}")
        for step, batch in enumerate(batches, start + 1):
            window.busy()
            named = jax.profiler.StepTraceAnnotation("train", step_num=step)
            with named, jax.transfer_guard("disallow"):
                self.state, metrics = update(self.state, batch)
            if step == start + 1:
                jax.block_until_ready(self.state)
                _logger.info("compiled in %.1f s", window.compiled(step))
                log_steps.compiled(step)
            yield step, metrics

    def _log_setup(self, data: RandomAccess) -> None:
        """Log notes on the data, and warn of alpha without a second pass."""
        sizes = data_line(self.task, data, self.evaluators)
        for line in (*self.task.report.notes(), sizes):
            _logger.info(line)
        r = self.config.rdrop
        if r.num_passes == 1 and r.alpha > 0:
            _logger.info(
                "rdrop.alpha: expected 0 for rdrop.num_passes=1, got %s; training "
                "without R-Drop. Set rdrop.num_passes=2 to train with it",
                r.alpha,
            )
        _logger.info("compiling the train step; a large model takes minutes")

    def _log(self, step: int, window: Window, examples: float) -> None:
        """Write the training metrics since the last log line."""
        values = window.read(step) | {"lr": float(self.schedule(step - 1))}
        self.metrics.record(step, "train", values)
        total = self.config.total_steps
        line = train_line(values, step, total, examples, window.eta(step, total))
        _logger.info(line, extra={"live": True})
        notify(self.callbacks, "log", step, values)

    def _validate(
        self, step: int, validate: Callable[[Params], dict[str, float]]
    ) -> None:
        """Score the validation data, and update the best step."""
        if self.progress.best_step < 0:
            _logger.info("first validation; compiling takes part of its time")
        scores = timed("validated", validate, eval_params(self.state))
        score = signed_score(self.config.eval.metric, scores)
        self.progress = with_score(self.progress, step, score)
        self.metrics.record(step, "validation", scores)
        _logger.info(scores_line(f"step {step}  validation", scores))
        notify(self.callbacks, "validation", step, scores)

    def out_of_patience(self) -> bool:
        """Return whether ``eval.patience`` validations in a row did not improve."""
        return 0 < self.config.eval.patience <= self.progress.stale

    def write_result(self, started: str) -> dict[str, Any]:
        """Score the best checkpoint and write result.json.

        Args:
          started: date and time of this start, for the record.

        Returns:
          The content of result.json.
        """
        config, task = self.config, self.task
        path, step = self.workdir / "result.json", int(self.state.step)
        result = workdir_lib.stored_result(path) or {}
        complete = result.get("step") == step and {*self.scored()} <= result.keys()
        if from_process_0(lambda: int(complete)):
            _logger.info("complete: %s contains the result of step %d", path, step)
            self.metrics.result(result, new=False)
            return result
        best, params = self._best_params()
        scores = {
            split: timed(f"scored {split}", evaluate, params)
            for split, evaluate in self.evaluators.items()
        }
        result = {
            "step": step,
            "checkpoint_step": best,
            **scores,
            "seconds": round(self.progress.seconds, 2),
            "data": task.provenance() | task.report.signatures(),
        }
        if init := workdir_lib.recorded_init(config, self.workdir):
            result["init"] = init
        result["run"] = run_record(started)
        if jax.process_index() == 0:
            write_json(path, result)
        self.metrics.result(result, new=True)
        for split in scores:
            _logger.info(scores_line(f"best step {best}  {split}", result[split]))
        if samples := task.report.samples:
            for line in samples(self.mesh)(params):
                _logger.info(line)
        _logger.info("trained in %s s; result in %s", result["seconds"], path)
        return result

    def _best_params(self) -> tuple[int, Params]:
        """Return step and parameters of the best checkpoint that is valid."""
        step, params = int(self.state.step), eval_params(self.state)
        best = self.progress.best_step
        if best != step:
            best = self.checkpoints.pick("best")
        if best != step:
            ema = self.config.optimizer.ema > 0
            params = self.checkpoints.restore_params(best, params, ema=ema)
        return best, params


def with_num_passes(config: ConfigDict) -> ConfigDict:
    """Return a copy of a config with the number of passes resolved."""
    resolved = config.copy_and_resolve_references().unlock()
    r = resolved.rdrop
    r.num_passes = resolve_num_passes(r.alpha, r.num_passes)
    return resolved.lock()


def due(step: int, every: int) -> bool:
    """Return whether ``every`` divides ``step``; always False for ``every=0``."""
    return every > 0 and step % every == 0


def signed_score(metric: str, scores: dict[str, float]) -> float:
    """Return the selection score with a sign so that higher is better; NaN is worst."""
    score = scores[metric]
    if math.isnan(score):
        return -math.inf
    return score if direction(metric) == "max" else -score


def with_score(progress: Progress, step: int, score: float) -> Progress:
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
            "Lower optimizer.lr, set optimizer.warmup or set optimizer.clip"
        )


def check_passes(task: Task, config: ConfigDict, state: TrainState, batch: Any) -> None:
    """Run `check_stochastic` if the step has more than one pass."""
    passes, options = config.rdrop.num_passes, task.step
    if passes == 1:
        return
    try:
        forward = options.forwards or task.forward
        forwards = with_views(forward, options.views, passes)
        check_stochastic(forwards, state.params, batch, state.key)
    except EqualPassesError as error:
        raise InputError(f"rdrop.alpha={config.rdrop.alpha}: {error}") from error
