"""Tables of a report as text and Markdown. Needs no jax."""

from collections.abc import Mapping
from typing import Any

from rdrop_jax.compare.report import DIAGNOSTICS, signed

Report = Mapping[str, Any]
Table = list[dict[str, str]]  # one dict per row, column to text
_NONE = "\u2013"


def make_markdown(report: Report) -> str:
    """Return the verdict and the table of the arms as Markdown."""
    rows = arms_table(report)
    columns = list(rows[0])
    lines = [
        report["verdict"]["sentence"],
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(row.values())} |" for row in rows),
    ]
    lines += ["", *(f"Failed: {name}: {why}" for name, why in report["failed"].items())]
    return "\n".join(lines).rstrip() + "\n"


def arms_table(report: Report) -> Table:
    """Return one row per arm: selected setting, test scores, difference to plain."""
    rows = []
    metric = report["metric"]["name"]
    names = dict.fromkeys(
        [metric, *(name for arm in report["arms"] for name in arm["test"])]
    )
    for arm in report["arms"]:
        row = {
            "arm": arm["arm"],
            "setting": arm["setting"] or ("as the config" if arm["seeds"] else "none"),
            "seeds": str(len(arm["seeds"])),
        }
        for name in names:
            found = arm["test"].get(name)
            row[f"test {name}"] = _mean_sd(found) if found else _NONE
        rows.append(row | _difference(arm))
    return rows


def settings_table(report: Report) -> Table:
    name = report["metric"]["chosen_by"]
    return [
        {
            "arm": row["arm"],
            "setting": row["setting"] or "as the config",
            "seeds": str(len(row["seeds"])),
            f"validation {name}": _mean_sd(row["validation"])
            if row["validation"]
            else _NONE,
            "chosen": "yes" if row["picked"] else "",
        }
        for row in report["exploratory"]
    ]


def diagnostics_table(report: Report) -> Table:
    arms = report["arms"]
    known = [
        k for k in DIAGNOSTICS if any(a["diagnostics"][k] is not None for a in arms)
    ]
    names = {**DIAGNOSTICS, "gap": f"{DIAGNOSTICS['gap']}, {report['metric']['name']}"}
    rows = [
        {
            "measure": names[key],
            **{arm["arm"]: _number(arm["diagnostics"][key]) for arm in arms},
        }
        for key in known
    ]
    measure = "when it was saved, % of the updates (least to most)"
    rows.append({"measure": measure, **{arm["arm"]: _saved(arm) for arm in arms}})
    return rows


def _saved(arm: Mapping[str, Any]) -> str:
    at = [100 * step / arm["updates"] for step in arm["checkpoints"]]
    if not at:
        return _NONE
    return f"{sum(at) / len(at):.0f} ({min(at):.0f} to {max(at):.0f})"


def cost_table(report: Report) -> Table:
    return [
        {
            "arm": arm["arm"],
            "updates": str(arm["updates"]),
            "ms per update": _number(_thousand(cost["update_seconds"])),
            "against plain": _number(cost["update_against_plain"]),
            "seconds per run": _number(cost["run_seconds"]),
        }
        for arm in report["arms"]
        if (cost := report["timings"].get(arm["arm"])) is not None
    ]


def differences_table(report: Report) -> Table:
    return [{"field": name, **row} for name, row in report["differences"].items()]


def _difference(arm: Mapping[str, Any]) -> dict[str, str]:
    found = arm["difference"]
    names = (
        "minus plain",
        "95 % over seeds",
        "95 % over test examples",
        "p (smallest possible)",
    )
    if found is None:
        return dict.fromkeys(names, _NONE)
    examples = found["examples"]
    values = (
        signed(found["mean"]),
        _NONE if found["low"] is None else _span(found["low"], found["high"]),
        _span(*examples) if examples else "no scores of single examples",
        f"{found['p']:.3g} ({found['smallest_p']:.2g})",
    )
    return dict(zip(names, values, strict=True))


def _mean_sd(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return _NONE
    spread = "" if found["sd"] is None else f" \u00b1 {found['sd']:.2g}"
    return f"{found['mean']:.4g}{spread}"


def _span(low: float, high: float) -> str:
    return f"{signed(low)} to {signed(high)}"


def _number(value: float | None, digits: int = 3) -> str:
    return _NONE if value is None else f"{value:.{digits}g}".replace("-", "\u2212")


def _thousand(value: float | None) -> float | None:
    return None if value is None else 1000 * value
