"""Selection and final runs of a comparison, in order."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdrop_jax import config as config_lib
from rdrop_jax import versions
from rdrop_jax.compare import results, runs
from rdrop_jax.compare.comparison_options import ComparisonOptions
from rdrop_jax.compare.plan import Setting, make_settings, make_trials
from rdrop_jax.compare.results import FinishedRun
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json, write_json
from rdrop_jax.training import direction
from rdrop_jax.training.preemption import Stop

_REMEDY = "Restore the file from a copy, or use another workdir"


def stored_comparison(
    options: ComparisonOptions, base: dict[str, Any], workdir: Path
) -> dict[str, Any] | None:
    """Return the content of comparison.json; None for a new comparison.

    Raises:
      InputError: the folder belongs to another comparison.
    """
    path = workdir / "comparison.json"
    if not path.exists():
        return None
    inputs = {"options": options.to_dict(), "base": base}
    stored = read_comparison(path)
    old = {name: stored[name] for name in inputs}
    for name, value in config_lib.added_fields(base.get("task", "")).items():
        if name in base:  # a comparison of an earlier version may lack it
            old["base"].setdefault(name, None if isinstance(value, type) else value)
    if lines := config_lib.differences(old, inputs, free=()):
        raise InputError(
            f"--workdir: {workdir} contains another comparison. Use another "
            "workdir, or the same values:\n  " + "\n  ".join(lines)
        )
    return stored


def open_comparison(
    options: ComparisonOptions, base: dict[str, Any], workdir: Path, command: str
) -> dict[str, Any]:
    """Initialize the folder for this comparison, or check that it belongs to it.

    Args:
      options: options of the comparison.
      base: config fields that all runs share.
      workdir: folder of the comparison.
      command: command that starts the comparison.

    Returns:
      The content of comparison.json.
    """
    if stored := stored_comparison(options, base, workdir):
        return stored
    if any(item.name != "lock" for item in workdir.iterdir()):
        raise InputError(
            f"--workdir: expected a new folder or one of a comparison, found other "
            f"files in {workdir}"
        )
    probe = runs.probe(options)
    for name, metric in (
        ("--metric", options.metric),
        ("eval.metric", base["eval.metric"]),
    ):
        if metric not in probe["scores"]:
            raise InputError(
                f"{name}: expected one that all arms have, of "
                f"{', '.join(probe['scores'])}, found {metric!r}"
            )
    if "test" not in probe["splits"]:
        raise InputError(
            "data: expected test data for the verdict, found the splits "
            f"{', '.join(probe['splits'])}. Set data.files.test, or data.test to a "
            "share of the training rows; an own task needs an evaluator named test"
        )
    content = {
        "options": options.to_dict(),
        "base": base,
        "pins": options.pins,
        "probe": probe,
        "versions": versions.versions(),
        "command": command,
    }
    write_json(workdir / "comparison.json", content)
    return content


def read_comparison(path: Path) -> dict[str, Any]:
    """Read comparison.json.

    Raises:
      InputError: not the content of a comparison.json.
    """
    try:
        content = read_json(path)
    except InputError as error:
        raise InputError(f"--workdir: {error}. {_REMEDY}") from error
    content.setdefault("pins", {})  # a comparison of an earlier version has none
    for name in ("options", "base", "pins", "probe", "versions"):
        if not isinstance(content.get(name), dict):
            found = type(content.get(name)).__name__
            raise InputError(
                f"--workdir: {path}: expected {name} of a comparison, found {found}. "
                f"{_REMEDY}"
            )
    base = content["base"]
    base.pop("eval.mode", None)  # written by earlier versions
    content["base"], _ = config_lib.renamed(base.get("task", ""), base)
    return content


@dataclass
class Comparison:
    """Runs of a comparison, executed phase by phase.

    Attributes:
      options: options of the comparison.
      stored: content of comparison.json.
      workdir: folder of the comparison.
      jobs: number of concurrent runs.
      start: function that starts the process of a run.
      stop: request to stop; once it is set, the running processes are killed.
      settings: arm to its settings.
      selected: arm to its selected setting, or None.
      finished: name of a trial to its finished run.
      failed: name of a failed run to the reason.
      cost_ratio: ratio that equal_compute uses; None without that arm.
    """

    options: ComparisonOptions
    stored: Mapping[str, Any]
    workdir: Path
    jobs: int
    start: runs.Start
    stop: Stop
    settings: dict[str, list[Setting]] = field(default_factory=dict)
    selected: dict[str, Setting | None] = field(default_factory=dict)
    finished: dict[str, FinishedRun] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    cost_ratio: float | None = None

    def __post_init__(self) -> None:
        self.selects = self.options.settings_per_arm > 1
        self.selection_metric: str = self.stored["base"]["eval.metric"]
        selection = self.options.settings_per_arm * self.options.seeds * self.selects
        total = (self.options.final_seeds + selection) * len(self.options.arms)
        self._progress = runs.RunProgress(total, self.jobs)

    def execute(self) -> None:
        """Execute the selection runs of all arms, then the final runs.

        equal_compute comes last, because its length depends on the cost of other arms.
        """
        arms = [arm for arm in self.options.arms if arm != "equal_compute"]
        self._execute_arms(arms)
        if "equal_compute" in self.options.arms:
            self.cost_ratio = self._read_cost_ratio()
            if self.cost_ratio is not None:
                self._execute_arms(["equal_compute"])

    def _execute_arms(self, arms: Sequence[str]) -> None:
        steps, ratio = self.stored["probe"]["steps_per_epoch"], self.cost_ratio or 1.0
        for arm in arms:
            self.settings[arm] = make_settings(self.options, steps, arm, ratio)
        if self.selects:
            candidates = [s for arm in arms for s in self.settings[arm]]
            self._execute_settings(candidates, final=False)
        for arm in arms:
            self.selected[arm] = self._select(arm)
        selected = [s for arm in arms if (s := self.selected[arm]) is not None]
        self._progress.skip((len(arms) - len(selected)) * self.options.final_seeds)
        self._execute_settings(selected, final=True)

    def _execute_settings(self, settings: Sequence[Setting], *, final: bool) -> None:
        # Ordered by seed, so that runs of all arms alternate.
        trials = [make_trials(self.options, s, final=final) for s in settings]
        ordered = [trial for row in zip(*trials, strict=True) for trial in row]
        self.failed |= runs.execute(
            self.options,
            ordered,
            self.workdir,
            jobs=self.jobs,
            progress=self._progress,
            stop=self.stop,
            start=self.start,
        )
        for trial in ordered:
            if trial.name in self.failed:
                continue
            run = results.read_run(trial, self.workdir)
            if reason := self._not_finite(run):
                self.failed[trial.name] = reason
            else:
                self.finished[trial.name] = run

    def _not_finite(self, run: FinishedRun) -> str:
        """Return why a run has no usable score; empty if it has one."""
        final = run.trial.final
        split = "test" if final else "validation"
        name = self.options.metric if final else self.selection_metric
        score = run.result[split].get(name, 0.0)
        if math.isfinite(score):
            return ""
        return f"{split} {name}: expected a finite score, found {score}"

    def runs_of(self, setting: Setting | None, *, final: bool) -> list[FinishedRun]:
        """Return the finished runs of a setting, by seed."""
        if setting is None:
            return []
        trials = make_trials(self.options, setting, final=final)
        return [self.finished[t.name] for t in trials if t.name in self.finished]

    def final_runs(self, arm: str) -> list[FinishedRun]:
        """Return the finished final runs of an arm."""
        return self.runs_of(self.selected.get(arm), final=True)

    def _select(self, arm: str) -> Setting | None:
        """Return the setting with the best mean validation score, the first of a tie.

        Settings with a failed run are ignored; None if no setting is left.
        """
        if not self.selects:
            return self.settings[arm][0]
        sign = 1.0 if direction(self.selection_metric) == "max" else -1.0
        scores = {}
        for setting in self.settings[arm]:
            found = self.runs_of(setting, final=False)
            total = sum(
                run.result["validation"][self.selection_metric] for run in found
            )
            if len(found) == self.options.seeds:
                scores[setting.index] = sign * total / len(found)
        best = max(scores, key=lambda index: scores[index], default=None)
        return None if best is None else self.settings[arm][best]

    def _read_cost_ratio(self) -> float | None:
        """Return the stored cost ratio; measure it once, so that resumed runs agree."""
        path = self.workdir / "cost.json"
        if not path.exists():
            ratio = results.cost_ratio(
                self.final_runs("plain"), self.final_runs("rdrop")
            )
            if not math.isfinite(ratio):
                self.failed["equal_compute"] = (
                    "no finished runs of plain and rdrop to measure the time of a step"
                )
                return None
            write_json(path, {"cost_ratio": round(ratio, 2)})
        stored = read_json(path).get("cost_ratio")
        if not isinstance(stored, int | float):
            raise InputError(
                f"--workdir: {path}: expected a number as cost_ratio, found "
                f"{stored!r}. {_REMEDY}"
            )
        return float(stored)
