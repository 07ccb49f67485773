"""Report of a comparison as one JSON-ready dict. Needs no jax."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags
from rdrop_jax.compare import plan, stats
from rdrop_jax.compare.options import Options
from rdrop_jax.compare.plan import Setting
from rdrop_jax.compare.results import Run, curve, difference, mean_of, summary

# Diagnostics of an arm: key to description and unit.
DIAGNOSTICS = {
    "pass_kl": "KL between passes at the end of training, nats",
    "gap": "validation minus training score",
    "ece": "calibration error on test (ECE)",
    "agreement": "sub-models that agree on a test example, share of pairs",
    "sub_model_kl": "KL between sub-models on test, nats",
}


@dataclass(frozen=True)
class Evidence:
    """Input of a report.

    Attributes:
      options: options of the comparison.
      base: config fields that all runs share.
      probe: result of `worker.probe`.
      versions: versions of Python and packages.
      command: command that started the comparison.
      select: name of the selection score, and "max" or "min".
      settings: arm to its settings.
      picked: arm to its selected setting, or None.
      selection: arm to index of a setting to its finished selection runs.
      final: arm to its finished final runs.
      failed: name of a failed run to the reason.
      cost_ratio: ratio that equal_compute used; None without that arm.
    """

    options: Options
    base: Mapping[str, Any]
    probe: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    select: tuple[str, str]
    settings: Mapping[str, Sequence[Setting]]
    picked: Mapping[str, Setting | None]
    selection: Mapping[str, Mapping[int, Sequence[Run]]]
    final: Mapping[str, Sequence[Run]]
    failed: Mapping[str, str]
    cost_ratio: float | None


def make_report(found: Evidence) -> dict[str, Any]:
    """Return the content of report.json; only ``timings`` depends on measured time."""
    options = found.options
    arms = [_arm(found, arm) for arm in options.arms]
    rdrop = next(arm for arm in arms if arm["arm"] == "rdrop")
    return _json_ready(
        {
            "format": 1,
            "verdict": _verdict(found, rdrop),
            "metric": {
                "name": options.metric,
                "mode": options.mode,
                "chosen_by": found.select[0],
                "chosen_mode": found.select[1],
            },
            "protocol": {
                "trials_per_arm": plan.trials_per_arm(options),
                "alphas": sum(alpha > 0 for alpha in options.alphas),
                "selection_seeds": options.seeds if found.selection else 0,
                "final_seeds": options.final_seeds,
                "min_seeds": stats.MIN_SEEDS,
                "cost_ratio": found.cost_ratio,
            },
            "arms": arms,
            "exploratory": _exploratory(found),
            "failed": dict(found.failed),
            "curves": {
                f"validation_{name}": _curves(found, "validation", name)
                for name in dict.fromkeys([options.metric, found.select[0], "loss"])
            }
            | {"pass_kl": _curves(found, "train", "kl", passes=True)},
            "config": _config(found),
            "differences": _differences(found),
            "data": found.probe["data"],
            "device": found.probe["device"],
            "versions": dict(found.versions),
            "command": found.command,
            "timings": _timings(found),
        }
    )


def _arm(found: Evidence, arm: str) -> dict[str, Any]:
    runs = found.final.get(arm, [])
    picked = found.picked.get(arm)
    plain = found.final.get("plain", [])
    metric = found.options.metric
    names = [n for n in (runs[0].result["test"] if runs else ()) if n != "examples"]
    return {
        "arm": arm,
        "what": found.options.what(arm),
        "setting": None if picked is None else picked.label,
        "updates": None if picked is None else int(picked.overrides["total_steps"]),
        "seeds": [run.trial.seed for run in runs],
        "checkpoints": [run.result["checkpoint_step"] for run in runs],
        "test": {n: summary([r.result["test"][n] for r in runs]) for n in names},
        "difference": difference(runs, plain, metric) if arm != "plain" else None,
        "diagnostics": _diagnostics(found, runs),
    }


def _diagnostics(found: Evidence, runs: Sequence[Run]) -> dict[str, float | None]:
    metric = found.options.metric

    def last_kl(run: Run) -> float | None:
        passes = _passes(run.trial.setting)
        records = [r for r in run.records if r["kind"] == "train"]
        return records[-1]["kl"] if passes > 1 and records else None

    def gap(run: Run) -> float | None:
        train = run.diagnostics.get("train", {}).get(metric)
        return None if train is None else run.result["validation"][metric] - train

    return {
        "pass_kl": mean_of(runs, last_kl),
        "gap": mean_of(runs, gap),
        "ece": mean_of(runs, lambda run: run.result["test"].get("ece")),
        "agreement": mean_of(runs, lambda run: run.diagnostics.get("agreement")),
        "sub_model_kl": mean_of(runs, lambda run: run.diagnostics.get("sub_model_kl")),
    }


def _passes(setting: Setting) -> int:
    passes = setting.overrides["rdrop.num_passes"]
    if passes != "none":
        return int(passes)
    return 2 if float(setting.overrides["rdrop.alpha"]) > 0 else 1


def _verdict(found: Evidence, rdrop: Mapping[str, Any]) -> dict[str, Any]:
    options, diff = found.options, rdrop["difference"]
    if diff is None:
        text = "No verdict: no seed was finished both with and without R-Drop."
        return {"word": "", "sentence": text}
    fields = {name: diff[name] for name in stats.Paired.__annotations__}
    paired = stats.Paired(**fields | {"values": tuple(diff["values"])})
    word = stats.verdict(paired, higher_is_better=options.mode == "max")
    count, unit = len(diff["seeds"]), options.metric
    figures = (
        f"{signed(diff['mean'])} test {unit} against plain training "
        f"({'higher' if options.mode == 'max' else 'lower'} is better; "
        f"{count} {'seed' if count == 1 else 'seeds'}"
    )
    if math.isfinite(diff["low"]):
        figures += (
            f"; 95\u00a0% interval {signed(diff['low'])} to {signed(diff['high'])}"
        )
    figures += ")"
    start = {
        "helps": "R-Drop helps here",
        "hurts": "R-Drop hurts here",
        "cannot be told": "Whether R-Drop helps here cannot be told",
        "": f"No verdict from fewer than {stats.MIN_SEEDS} seeds",
    }[word]
    sentence = f"{start}: {figures}."
    examples = diff["examples"]
    if word in ("helps", "hurts") and examples and examples[0] <= 0 <= examples[1]:
        sentence += (
            " This holds for these test examples; they are too few to say so of others."
        )
    return {"word": word, "sentence": sentence}


def signed(value: float) -> str:
    """Format four significant digits with a sign; 0 up to rounding error gives "0"."""
    return f"{value:+.4g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0"


def _exploratory(found: Evidence) -> list[dict[str, Any]]:
    """Return candidate settings and validation scores; empty without a selection."""
    rows: list[dict[str, Any]] = []
    if not found.selection:
        return rows
    for arm, settings in found.settings.items():
        for setting in settings:
            runs = found.selection.get(arm, {}).get(setting.index, [])
            scores = [run.result["validation"][found.select[0]] for run in runs]
            rows.append(
                {
                    "arm": arm,
                    "setting": setting.label,
                    "picked": found.picked.get(arm) == setting,
                    "seeds": [run.trial.seed for run in runs],
                    "validation": summary(scores) if scores else None,
                }
            )
    return rows


def _curves(
    found: Evidence, kind: str, name: str, *, passes: bool = False
) -> dict[str, Any]:
    curves = {
        arm: curve(runs, kind, name)
        for arm, runs in found.final.items()
        if runs and (not passes or _passes(runs[0].trial.setting) > 1)
    }
    return {arm: line for arm, line in curves.items() if line is not None}


def _config(found: Evidence) -> dict[str, Any]:
    """Return the config fields of plain's final runs, without the seed."""
    setting = found.picked.get("plain")
    if setting is None:
        return dict(found.base)
    trial = plan.trials(found.options, setting, final=True)[0]
    config = config_lib.flatten(flags.load(found.options.config, trial.overrides))
    return {name: value for name, value in config.items() if name != "seed"}


def _differences(found: Evidence) -> dict[str, dict[str, str]]:
    """Map field to arm to value, for each field that differs between arms."""
    picked = {arm: s.overrides for arm, s in found.picked.items() if s is not None}
    fields = sorted({name for fields in picked.values() for name in fields})
    rows = {
        name: {
            arm: fields.get(name, str(found.base[name]))
            for arm, fields in picked.items()
        }
        for name in fields
    }
    return {name: row for name, row in rows.items() if len(set(row.values())) > 1}


def _timings(found: Evidence) -> dict[str, Any]:
    """Return the cost of each arm, and its curve over seconds at its median speed."""
    name = found.options.metric
    costs: dict[str, Any] = {}
    for arm, runs in found.final.items():
        if not runs:
            continue
        update = float(np.median([run.update_seconds for run in runs]))
        costs[arm] = {
            "update_seconds": update,
            "run_seconds": float(np.mean([run.result["seconds"] for run in runs])),
            "curve": curve(runs, "validation", name, scale=update),
        }
    plain = costs.get("plain", {}).get("update_seconds", math.nan)
    for cost in costs.values():
        cost["update_against_plain"] = cost["update_seconds"] / plain
    return costs


def _json_ready(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, by None."""
    if isinstance(value, Mapping):
        return {key: _json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
