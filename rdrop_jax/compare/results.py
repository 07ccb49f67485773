"""Results of finished runs: scores, differences, curves, cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rdrop_jax.compare import stats
from rdrop_jax.compare.plan import Trial
from rdrop_jax.data.bootstrap import mean_interval
from rdrop_jax.files import npz_headers
from rdrop_jax.files.disk import read_json, read_records

Curve = dict[str, list[float]]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
      trial: setting and seed of the run.
      result: content of result.json.
      diagnostics: content of diagnostics.json; empty for a selection run.
      records: records of metrics.jsonl.
      examples: score, or `label`, to values [examples] on test data; may be empty.
    """

    trial: Trial
    result: dict[str, Any]
    diagnostics: dict[str, Any]
    records: list[dict[str, Any]]
    examples: dict[str, np.ndarray]

    @property
    def step_seconds(self) -> float:
        """Median seconds per step over the log windows; NaN if none was timed."""
        speeds = [
            speed
            for record in self.records
            if record.get("kind") == "train"
            and isinstance(speed := record.get("steps_per_second"), int | float)
            and speed > 0
        ]
        return 1.0 / float(np.median(speeds)) if speeds else math.nan


def read_run(trial: Trial, workdir: Path) -> FinishedRun:
    """Read the workdir of a finished run.

    Args:
      trial: setting and seed of the run.
      workdir: folder of the comparison.
    """
    folder = workdir / trial.name
    examples = folder / "test_examples.npz"
    return FinishedRun(
        trial=trial,
        result=read_json(folder / "result.json"),
        diagnostics=read_json(folder / "diagnostics.json") if trial.final else {},
        records=read_records(folder / "metrics.jsonl"),
        examples=npz_headers.load(examples) if examples.is_file() else {},
    )


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, standard deviation and the values."""
    array = np.asarray(values, np.float64)
    return {"mean": float(array.mean()), "sd": stats.sd(array), "values": list(values)}


def cost_ratio(plain: Sequence[FinishedRun], rdrop: Sequence[FinishedRun]) -> float:
    """Return the median time per step of rdrop over that of plain; NaN without runs.

    At least 1: two passes cannot cost less than one, so a lower ratio is noise.
    """
    medians = [
        float(np.median([run.step_seconds for run in runs])) if runs else math.nan
        for runs in (rdrop, plain)
    ]
    ratio = medians[0] / medians[1]
    return 1.0 if ratio < 1 else ratio


def difference(
    arm: Sequence[FinishedRun], plain: Sequence[FinishedRun], metric: str
) -> dict[str, Any] | None:
    """Compare an arm to plain on test data, over the seeds that both finished.

    Returns:
      `stats.Paired` as a dict, the ``seeds``, and ``examples``: the bootstrap interval
      over test examples, or None without scores per example of the same rows.
    """
    ours, theirs = ({run.trial.seed: run for run in runs} for runs in (arm, plain))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    a, b = (
        np.array([runs[seed].result["test"][metric] for seed in seeds], np.float64)
        for runs in (ours, theirs)
    )
    examples = None
    each = [runs[seed].examples for runs in (ours, theirs) for seed in seeds]
    if all(metric in x for x in each) and _same_rows(each, metric):
        per_seed = [
            ours[seed].examples[metric].astype(np.float64)
            - theirs[seed].examples[metric]
            for seed in seeds
        ]
        examples = list(mean_interval(np.mean(per_seed, axis=0), stats.RESAMPLES))
    return {"seeds": seeds, **asdict(stats.paired(a, b)), "examples": examples}


def _same_rows(examples: Sequence[Mapping[str, np.ndarray]], metric: str) -> bool:
    """Return whether runs scored equal labels, or equally many rows without labels."""
    labels = [x["label"] for x in examples if "label" in x]
    if not labels:
        return len({len(x[metric]) for x in examples}) == 1
    equal = all(np.array_equal(x, labels[0]) for x in labels)
    return equal and len(labels) == len(examples)


def curve(
    runs: Sequence[FinishedRun], kind: str, name: str, *, scale: float = 1.0
) -> Curve | None:
    """Return mean and standard deviation over runs, at the steps that all recorded.

    Args:
      runs: runs of one setting.
      kind: "train" or "validation".
      name: name of the value.
      scale: factor from steps to ``x``.

    Returns:
      ``x``, ``mean``, ``sd``; None if the runs have no recorded step in common.
    """
    found: list[dict[int, float]] = [
        {r["step"]: r[name] for r in run.records if r["kind"] == kind and name in r}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, found))) if found else []
    if not steps:
        return None
    table: Float[np.ndarray, "runs steps"] = np.array(
        [[one[step] for step in steps] for one in found], np.float64
    )
    sd = table.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(steps))
    return {
        "x": [step * scale for step in steps],
        "mean": table.mean(axis=0).tolist(),
        "sd": sd.tolist(),
    }


def mean_of(
    runs: Sequence[FinishedRun], get: Callable[[FinishedRun], float | None]
) -> float | None:
    """Return the mean of a value over runs; None unless every run has it."""
    values = [get(run) for run in runs]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
