"""HTML page and Markdown table of a report, from the content of report.json."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from rdrop_jax.compare import stats, svg, templates
from rdrop_jax.compare.report import DIAGNOSTICS, signed

Report = Mapping[str, Any]
Table = list[dict[str, str]]  # one dict per row, column to text
_NONE = "\u2013"
_CONTROLS = ("equal_compute", "two_passes", "double_batch")


def make_page(report: Report) -> str:
    """Return a self-contained HTML page, for screens of any width and for print."""
    lines = "\n".join
    return templates.render(
        "report.html",
        report=report,
        failed=[f"{name}: {reason}" for name, reason in report["failed"].items()],
        charts=list(_charts(report)),
        descriptions=[f"{arm['arm']}: {arm['what']}" for arm in report["arms"]],
        arms=arms_table(report),
        controls=controls_table(report),
        settings=settings_table(report),
        diagnostics=diagnostics_table(report),
        costs=cost_table(report),
        differences=[
            {"field": name, **row} for name, row in report["differences"].items()
        ],
        config=lines(f"{k} = {v!r}" for k, v in report["config"].items()),
        versions=lines(f"{k} {v}" for k, v in report["versions"].items()),
        data=lines(f"{k} {v}" for k, v in report["data"].items()),
        markdown=make_markdown(report),
    )


def make_markdown(report: Report) -> str:
    """Return the verdict and the tables of the arms and controls as Markdown."""
    tables = [arms_table(report), controls_table(report)]
    return str(templates.render("report.md", report=report, tables=tables))


def arms_table(report: Report) -> Table:
    """Return one row per arm: selected setting, test scores, difference to plain."""
    scores = [
        report["metric"]["name"],
        *(n for arm in report["arms"] for n in arm["test"]),
    ]
    rows = []
    for arm in report["arms"]:
        diff = arm["difference"]
        row = {
            "arm": arm["arm"],
            "setting": arm["setting"]
            or ("as in the config" if arm["seeds"] else "none"),
            "seeds": str(len(arm["seeds"])),
            **{f"test {name}": _mean_sd(arm["test"].get(name)) for name in scores},
            "difference to plain": signed(diff["mean"]) if diff else _NONE,
            "95 % interval over seeds": _NONE,
            "95 % interval over test examples": _NONE,
            "p (minimum possible)": _NONE,
        }
        if diff:
            if diff["low"] is not None:
                row["95 % interval over seeds"] = _span(diff["low"], diff["high"])
            row["95 % interval over test examples"] = (
                _span(*diff["examples"])
                if diff["examples"]
                else "no common scores per example"
            )
            row["p (minimum possible)"] = f"{diff['p']:.3g} ({diff['smallest_p']:.2g})"
        rows.append(row)
    return rows


def controls_table(report: Report) -> Table:
    """Return one row per control: the difference of rdrop to it."""
    rows = []
    for name in _CONTROLS:
        if (scores := paired_scores(report, name)) is not None:
            diff = stats.paired(*scores)
            rows.append(
                {
                    "control": name,
                    "rdrop minus control": signed(diff.mean),
                    "95 % interval over seeds": _span(diff.low, diff.high),
                    "p (minimum possible)": f"{diff.p:.3g} ({diff.smallest_p:.2g})",
                }
            )
    return rows


def paired_scores(
    report: Report, other: str
) -> tuple[Float[np.ndarray, " seeds"], Float[np.ndarray, " seeds"]] | None:
    """Return the test scores of rdrop and of another arm, over the seeds of both.

    Returns:
      Finite scores in the order of the seeds; None if fewer than two seeds have both.
    """
    name = report["metric"]["name"]
    values = {
        arm["arm"]: dict(zip(arm["seeds"], arm["test"][name]["values"], strict=True))
        for arm in report["arms"]
        if arm["seeds"]
    }
    ours, theirs = values.get("rdrop", {}), values.get(other, {})
    # Stored scores are None if they were not finite.
    pairs = [
        (ours[seed], theirs[seed])
        for seed in sorted(ours.keys() & theirs.keys())
        if ours[seed] is not None and theirs[seed] is not None
    ]
    if len(pairs) < 2:
        return None
    first, second = np.array(pairs, np.float64).T
    return first, second


def settings_table(report: Report) -> Table:
    """Return one row per candidate setting; empty if each arm had only one."""
    return [
        {
            "arm": row["arm"],
            "setting": row["setting"] or "as in the config",
            "seeds": str(len(row["seeds"])),
            f"validation {report['metric']['chosen_by']}": _mean_sd(row["validation"]),
            "selected": "yes" if row["picked"] else "",
        }
        for row in report["exploratory"]
    ]


def diagnostics_table(report: Report) -> Table:
    """Return one row per diagnostic that an arm has, one column per arm."""
    arms = report["arms"]
    rows = [
        {"measure": name}
        | {arm["arm"]: _number(arm["diagnostics"][key]) for arm in arms}
        for key, name in DIAGNOSTICS.items()
        if any(arm["diagnostics"][key] is not None for arm in arms)
    ]
    for row in rows:
        if row["measure"] == DIAGNOSTICS["gap"]:
            row["measure"] += f", {report['metric']['name']}"
    measure = "checkpoint saved at, % of the steps (minimum to maximum)"
    return [*rows, {"measure": measure} | {arm["arm"]: _saved(arm) for arm in arms}]


def cost_table(report: Report) -> Table:
    """Return one row per arm: number of steps, and measured times."""
    return [
        {
            "arm": arm["arm"],
            "steps": str(arm["updates"]),
            "ms per step": _number(cost["update_seconds"], 1000),
            "relative to plain": _number(cost["update_against_plain"]),
            "seconds per run": _number(cost["run_seconds"]),
        }
        for arm in report["arms"]
        if (cost := report["timings"].get(arm["arm"])) is not None
    ]


def _charts(report: Report) -> Iterator[Markup]:
    name, mode = report["metric"]["name"], report["metric"]["mode"]
    rows = [
        svg.Interval(
            # The name of an ablation contains its field and value.
            f"{arm['arm']}, {arm['setting']}"
            if arm["setting"] and "=" not in arm["arm"]
            else arm["arm"],
            diff["mean"],
            math.nan if diff["low"] is None else diff["low"],
            math.nan if diff["high"] is None else diff["high"],
            diff["values"],
        )
        for arm in report["arms"]
        if (diff := arm["difference"]) is not None
    ]
    if rows:
        better = "right" if mode == "max" else "left"
        yield svg.interval_chart(
            rows,
            title="Test score minus plain: seeds, mean, 95 % interval",
            x=f"difference in test {name} ({better} is better)",
        )
    specs = [
        ("KL between passes, training", "steps", "nats", curves)
        if score == "pass_kl"
        else (score.replace("_", " "), "steps", score.split("_", 1)[1], curves)
        for score, curves in report["curves"].items()
    ]
    over_time = {
        arm: cost["curve"] for arm, cost in report["timings"].items() if cost["curve"]
    }
    x = "seconds of training at the median speed"
    specs.append((f"validation {name} over time", x, name, over_time))
    styles = {arm["arm"]: number for number, arm in enumerate(report["arms"])}
    for title, x, y, curves in specs:
        found = [_line(arm, styles[arm], curve) for arm, curve in curves.items()]
        if lines := [line for line in found if line.x]:
            yield svg.line_chart(lines, title=title, x=x, y=y)


def _line(arm: str, style: int, curve: Mapping[str, Any]) -> svg.Line:
    points = [
        (x, mean, sd or 0.0)
        for x, mean, sd in zip(curve["x"], curve["mean"], curve["sd"], strict=True)
        if mean is not None and x is not None  # x without a timed step
    ]
    x, mean, sd = ([point[i] for point in points] for i in range(3))
    return svg.Line(arm, style, x, mean, sd)


def _saved(arm: Mapping[str, Any]) -> str:
    at = [100 * step / arm["updates"] for step in arm["checkpoints"]]
    return f"{sum(at) / len(at):.0f} ({min(at):.0f} to {max(at):.0f})" if at else _NONE


def _mean_sd(found: Mapping[str, Any] | None) -> str:
    if found is None or found["mean"] is None:
        return _NONE
    spread = "" if found["sd"] is None else f" \u00b1 {found['sd']:.2g}"
    return f"{found['mean']:.4g}{spread}"


def _span(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _number(value: float | None, scale: int = 1) -> str:
    return _NONE if value is None else f"{scale * value:.3g}".replace("-", "\u2212")
