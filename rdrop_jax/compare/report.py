"""Report of a comparison as one JSON-ready dict."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rdrop_jax import config as config_lib
from rdrop_jax.compare import stats
from rdrop_jax.compare.comparison import Comparison
from rdrop_jax.compare.comparison_options import ComparisonOptions
from rdrop_jax.compare.plan import make_trials
from rdrop_jax.compare.results import (
    Curve,
    FinishedRun,
    curve,
    difference,
    mean_of,
    summary,
)
from rdrop_jax.files.disk import json_ready
from rdrop_jax.training import direction

# Diagnostics of an arm: key to description and unit.
DIAGNOSTICS = {
    "pass_kl": "KL between passes at the end of training, nats",
    "gap": "validation minus training score",
    "ece": "calibration error on test (ECE)",
    "agreement": "agreement of sub-models on a test example, share of pairs",
    "sub_model_kl": "KL between sub-models on test, nats",
}


def make_report(comparison: Comparison) -> dict[str, Any]:
    """Return the content of report.json; only ``timings`` depends on measured time."""
    options, stored = comparison.options, comparison.stored
    chosen_by = comparison.selection_metric
    arms = [_arm(comparison, arm) for arm in options.arms]
    rdrop = next(arm for arm in arms if arm["arm"] == "rdrop")
    curves = {
        f"validation_{name}": _curves(comparison, "validation", name)
        for name in dict.fromkeys([options.metric, chosen_by, "loss"])
    }
    report = {
        "format": 1,
        "verdict": _verdict(options, rdrop["difference"]),
        "metric": {
            "name": options.metric,
            "mode": options.mode,
            "chosen_by": chosen_by,
            "chosen_mode": direction(chosen_by),
        },
        "protocol": {
            "trials_per_arm": options.settings_per_arm,
            "alphas": len(options.positive_alphas),
            "selection_seeds": options.seeds if comparison.selects else 0,
            "final_seeds": options.final_seeds,
            "min_seeds": stats.MIN_SEEDS,
            "cost_ratio": comparison.cost_ratio,
        },
        "arms": arms,
        "exploratory": _candidates(comparison) if comparison.selects else [],
        "failed": dict(comparison.failed),
        "curves": curves | {"pass_kl": _curves(comparison, "train", "kl", 2)},
        "config": _config(comparison),
        "differences": _differences(comparison),
        "data": stored["probe"]["data"],
        "device": stored["probe"]["device"],
        "versions": dict(stored["versions"]),
        "command": stored["command"],
        "timings": _timings(comparison),
    }
    found: dict[str, Any] = json_ready(report)
    return found


def _arm(comparison: Comparison, arm: str) -> dict[str, Any]:
    runs = comparison.final_runs(arm)
    selected = comparison.selected.get(arm)
    metric = comparison.options.metric
    tests = [run.result["test"] for run in runs]
    names = [name for name in (tests[0] if tests else ()) if name != "examples"]
    diff = difference(runs, comparison.final_runs("plain"), metric)
    return {
        "arm": arm,
        "what": comparison.options.describe(arm),
        "setting": None if selected is None else selected.label,
        "updates": None if selected is None else int(selected.overrides["total_steps"]),
        "seeds": [run.trial.seed for run in runs],
        "checkpoints": [run.result["checkpoint_step"] for run in runs],
        "test": {name: summary([test[name] for test in tests]) for name in names},
        "difference": None if arm == "plain" else diff,
        "diagnostics": _diagnostics(runs, metric),
    }


def _diagnostics(runs: Sequence[FinishedRun], metric: str) -> dict[str, float | None]:
    def last_kl(run: FinishedRun) -> float | None:
        if run.trial.setting.num_passes == 1:
            return None
        found = [r["kl"] for r in run.records if r["kind"] == "train" and "kl" in r]
        # Records of 0.1 have 0 where no step of the window ran R-Drop.
        return ([kl for kl in found if kl] or found or [None])[-1]

    def gap(run: FinishedRun) -> float | None:
        train = run.diagnostics.get("train", {}).get(metric)
        return None if train is None else run.result["validation"][metric] - train

    return {
        "pass_kl": mean_of(runs, last_kl),
        "gap": mean_of(runs, gap),
        "ece": mean_of(runs, lambda run: run.result["test"].get("ece")),
        "agreement": mean_of(runs, lambda run: run.diagnostics.get("agreement")),
        "sub_model_kl": mean_of(runs, lambda run: run.diagnostics.get("sub_model_kl")),
    }


def _verdict(
    options: ComparisonOptions, diff: Mapping[str, Any] | None
) -> dict[str, str]:
    if diff is None:
        text = "No verdict: no seed was finished both with and without R-Drop."
        return {"word": "", "sentence": text}
    word = stats.verdict(diff, higher_is_better=options.mode == "max")
    count = len(diff["seeds"])
    interval = ""
    if math.isfinite(diff["low"]):
        ends = f"{signed(diff['low'])} to {signed(diff['high'])}"
        interval = f"; 95\u00a0% interval {ends}"
    start = {
        "helps": "R-Drop helps here",
        "hurts": "R-Drop hurts here",
        "inconclusive": "The effect of R-Drop here is inconclusive",
        "": f"No verdict from fewer than {stats.MIN_SEEDS} seeds",
    }[word]
    sentence = (
        f"{start}: {signed(diff['mean'])} test {options.metric} against plain training "
        f"({'higher' if options.mode == 'max' else 'lower'} is better; "
        f"{count} {'seed' if count == 1 else 'seeds'}{interval})."
    )
    examples = diff["examples"]
    if word in ("helps", "hurts") and examples and examples[0] <= 0 <= examples[1]:
        sentence += " There are too few test examples to generalize to new ones."
    return {"word": word, "sentence": sentence}


def signed(value: float | None) -> str:
    """Format four significant digits with a sign.

    0 up to rounding error gives "0"; a number that is absent or not finite, a dash.
    """
    if value is None or not math.isfinite(value):
        return "\u2013"
    return f"{value:+.4g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0"


def _candidates(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the candidate settings of all arms with their validation scores."""
    rows = []
    for arm, settings in comparison.settings.items():
        for setting in settings:
            runs = comparison.runs_of(setting, final=False)
            name = comparison.selection_metric
            scores = [run.result["validation"][name] for run in runs]
            rows.append(
                {
                    "arm": arm,
                    "setting": setting.label,
                    "picked": comparison.selected[arm] == setting,
                    "seeds": [run.trial.seed for run in runs],
                    "validation": summary(scores) if scores else None,
                }
            )
    return rows


def _curves(
    comparison: Comparison, kind: str, name: str, min_passes: int = 1
) -> dict[str, Curve]:
    """Map arm to curve, for arms with at least ``min_passes`` forward passes."""
    found = {}
    for arm, setting in comparison.selected.items():
        if setting is not None and setting.num_passes >= min_passes:
            found[arm] = curve(comparison.final_runs(arm), kind, name)
    return {arm: line for arm, line in found.items() if line is not None}


def _config(comparison: Comparison) -> dict[str, Any]:
    """Return the config fields of plain's final runs, without the seed."""
    setting = comparison.selected.get("plain")
    if setting is None:
        return dict(comparison.stored["base"])
    trial = make_trials(comparison.options, setting, final=True)[0]
    config = config_lib.flatten(comparison.options.load(trial.overrides))
    return {name: value for name, value in config.items() if name != "seed"}


def _differences(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Map field to arm to value, for each field that differs between arms."""
    base = comparison.stored["base"]
    arms = {arm: s.overrides for arm, s in comparison.selected.items() if s is not None}
    rows = {
        name: {arm: fields.get(name, str(base[name])) for arm, fields in arms.items()}
        for name in sorted({name for fields in arms.values() for name in fields})
    }
    values = {
        arm: config_lib.flatten(comparison.options.load(fields))
        for arm, fields in arms.items()
    }
    return {
        name: row
        for name, row in rows.items()
        if len({str(values[arm][name]) for arm in row}) > 1
    }


def _timings(comparison: Comparison) -> dict[str, Any]:
    """Return the cost of each arm, and its curve over seconds at its median speed."""
    costs: dict[str, Any] = {}
    for arm in comparison.selected:
        if not (runs := comparison.final_runs(arm)):
            continue
        seconds = float(np.median([run.step_seconds for run in runs]))
        metric = comparison.options.metric
        costs[arm] = {
            "update_seconds": seconds,
            "run_seconds": float(np.mean([run.result["seconds"] for run in runs])),
            "curve": curve(runs, "validation", metric, scale=seconds),
        }
    plain = costs.get("plain", {}).get("update_seconds", math.nan)
    for cost in costs.values():
        cost["update_against_plain"] = cost["update_seconds"] / plain
    return costs
