"""Selection and final runs of a comparison, in order. Needs no jax."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdrop_jax import versions
from rdrop_jax.compare import plan, results, runs
from rdrop_jax.compare.options import Options, unlike, variants
from rdrop_jax.compare.plan import Setting, Trial
from rdrop_jax.compare.report import Evidence
from rdrop_jax.errors import InputError
from rdrop_jax.files.disk import read_json, write_json
from rdrop_jax.training.preemption import Stop
from rdrop_jax.training.task import direction

_REMEDY = "restore the file from a copy, or take another workdir"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def claim(
    options: Options, base: dict[str, Any], workdir: Path, command: str
) -> dict[str, Any]:
    """Initialize the folder for this comparison, or check that it belongs to it.

    Returns:
      The content of comparison.json.
    """
    path = workdir / "comparison.json"
    asked = {"options": options.to_dict(), "base": base}
    if path.exists():
        began = stored(path)
        if lines := unlike({k: began[k] for k in asked}, asked):
            raise InputError(
                f"--workdir: {workdir} holds another comparison; take another workdir, "
                "or the same values:\n  " + "\n  ".join(lines)
            )
        return began
    if any(item.name != "lock" for item in workdir.iterdir()):
        raise InputError(
            f"--workdir: expected a new folder or one of a comparison, found other "
            f"things in {workdir}"
        )
    probe = runs.probe(options, variants(options))
    names = {"--metric": options.metric, "eval.metric": base["eval.metric"]}
    for field, name in names.items():
        if name not in probe["scores"]:
            raise InputError(
                f"{field}: expected one that all arms have, of "
                f"{', '.join(probe['scores'])}, found {name!r}"
            )
    found = versions.versions(PACKAGES)
    began = asked | {"probe": probe, "versions": found, "command": command}
    write_json(path, began)
    return began


def stored(path: Path) -> dict[str, Any]:
    """Read comparison.json.

    Raises:
      InputError: not the content of a comparison.json.
    """
    try:
        began = read_json(path)
    except InputError as error:
        raise InputError(f"--workdir: {error}; {_REMEDY}") from error
    for name in ("options", "base", "probe", "versions"):
        if not isinstance(began.get(name), dict):
            found = type(began.get(name)).__name__
            raise InputError(
                f"--workdir: {path}: expected {name} of a comparison, found {found}; "
                f"{_REMEDY}"
            )
    began["base"].pop("eval.mode", None)  # now the score names it
    return began


class Comparison:
    """Runs of a comparison, executed phase by phase.

    Args:
      options: options of the comparison.
      began: content of comparison.json.
      workdir: folder of the comparison.
      jobs: number of concurrent runs.
      start: function that starts the process of a run.
      stop: request to stop; once it is set, the running processes are killed.
    """

    def __init__(
        self,
        options: Options,
        began: dict[str, Any],
        workdir: Path,
        *,
        jobs: int,
        start: runs.Start,
        stop: Stop,
    ) -> None:
        self._options, self._began, self._workdir = options, began, workdir
        self._jobs, self._start, self._stop = jobs, start, stop
        chooses = began["base"]["eval.metric"]
        self._select = (chooses, direction(chooses))
        self._settings: dict[str, list[Setting]] = {}
        self._picked: dict[str, Setting | None] = {}
        self._found: dict[str, results.Run] = {}
        self._failed: dict[str, str] = {}
        self._ratio: float | None = None
        each = plan.trials_per_arm(options)
        self._chooses = each > 1
        per_arm = options.final_seeds + each * options.seeds * self._chooses
        self._progress = runs.Progress(per_arm * len(options.arms), jobs)

    def make_runs(self) -> None:
        """Execute the selection runs of all arms, then the final runs.

        equal_compute comes last, because its length depends on the cost of other arms.
        """
        late = [arm for arm in self._options.arms if arm == "equal_compute"]
        self._make([arm for arm in self._options.arms if arm not in late])
        if late:
            self._ratio = self._cost_ratio()
            if self._ratio is not None:
                self._make(late)

    def _make(self, arms: Sequence[str]) -> None:
        steps, ratio = self._began["probe"]["steps_per_epoch"], self._ratio or 1.0
        for arm in arms:
            self._settings[arm] = plan.settings(self._options, steps, arm, ratio)
        if self._chooses:
            every = [s for arm in arms for s in self._settings[arm]]
            self._execute(every, final=False)
        for arm in arms:
            self._picked[arm] = self._pick(arm)
        chosen = [self._picked[arm] for arm in arms]
        self._progress.skip(chosen.count(None) * self._options.final_seeds)
        self._execute([s for s in chosen if s is not None], final=True)

    def _execute(self, settings: Sequence[Setting], *, final: bool) -> None:
        # Ordered by seed, so that runs of all arms alternate.
        trials = [plan.trials(self._options, s, final=final) for s in settings]
        ordered = [trial for row in zip(*trials, strict=True) for trial in row]
        failed = runs.execute(
            self._options,
            ordered,
            self._workdir,
            jobs=self._jobs,
            progress=self._progress,
            stop=self._stop,
            start=self._start,
        )
        self._failed |= failed
        for trial in ordered:
            if trial.name not in failed:
                self._found[trial.name] = results.read_run(trial, self._workdir)

    def _runs_of(self, setting: Setting | None, *, final: bool) -> list[results.Run]:
        if setting is None:
            return []
        trials: list[Trial] = plan.trials(self._options, setting, final=final)
        return [self._found[t.name] for t in trials if t.name in self._found]

    def _pick(self, arm: str) -> Setting | None:
        settings = self._settings[arm]
        if not self._chooses:
            return settings[0]
        found = {s.index: self._runs_of(s, final=False) for s in settings}
        return results.choose(found, settings, self._options.seeds, *self._select)

    def _cost_ratio(self) -> float | None:
        """Return the stored cost ratio; measure it once, so that resumed runs agree."""
        path = self._workdir / "cost.json"
        if not path.exists():
            plain, rdrop = (
                self._runs_of(self._picked[arm], final=True)
                for arm in ("plain", "rdrop")
            )
            ratio = results.cost_ratio(plain, rdrop)
            if not math.isfinite(ratio):
                why = "no finished runs of plain and rdrop to time its updates by"
                self._failed["equal_compute"] = why
                return None
            write_json(path, {"cost_ratio": round(ratio, 2)})
        kept = read_json(path).get("cost_ratio")
        if not isinstance(kept, int | float):
            raise InputError(
                f"--workdir: {path}: expected a number as cost_ratio, found {kept!r}. "
                "Restore the file from a copy, or use another workdir"
            )
        return float(kept)

    def evidence(self) -> Evidence:
        """Return the input of the report."""
        selection = {
            arm: {s.index: self._runs_of(s, final=False) for s in settings}
            for arm, settings in self._settings.items()
        }
        began = self._began
        return Evidence(
            options=self._options,
            base=began["base"],
            probe=began["probe"],
            versions=began["versions"],
            command=began["command"],
            select=self._select,
            settings=self._settings,
            picked=self._picked,
            selection=selection if self._chooses else {},
            final={
                arm: self._runs_of(setting, final=True)
                for arm, setting in self._picked.items()
            },
            failed=self._failed,
            cost_ratio=self._ratio,
        )
