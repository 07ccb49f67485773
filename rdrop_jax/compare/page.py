"""HTML page of a report, from the content of report.json. Needs no jax."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from rdrop_jax.compare import svg, tables
from rdrop_jax.compare.tables import Report

_COLUMNS = 11  # maximum columns that fit the page; a wider table scrolls in its box
_STYLE = """
:root { color-scheme: light }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; color: #1a1a1a;
  background: #fff; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.4rem; margin: 0 0 .5rem }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
.verdict { border-left: 6px solid #777; background: #f3f3f3; padding: .8rem 1rem;
  font-size: 1.1rem; margin: 0 }
.verdict.helps { border-color: #009e73 } .verdict.hurts { border-color: #d55e00 }
.note { color: #555; font-size: .9rem } .failed { color: #a00000 }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums;
  overflow-wrap: break-word }
.table { overflow-x: auto }
.table th { overflow-wrap: normal; vertical-align: bottom }
.wide table { width: max-content; min-width: 100% }
.wide th, .wide td { max-width: 9rem }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0;
  background: #fff; max-width: 11rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr));
  gap: 1.5rem }
svg { width: 100%; height: auto; max-width: 34rem; display: block }
svg text { font: 12px system-ui, sans-serif; fill: #1a1a1a }
svg .title { font-weight: 600; font-size: 13px }
svg .axis { stroke: #444; fill: none } svg .grid { stroke: #e3e3e3; fill: none }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f3f3;
  padding: .7rem; font-size: .8rem }
@media screen and (max-width: 56rem) {
  body { padding: .75rem }
  .charts { grid-template-columns: 1fr }
  table, tbody, tr, td { display: block }
  thead { display: none }
  .wide td, .wide td:first-child { position: static; max-width: none }
  .wide table { width: 100% }
  tr { border-bottom: 2px solid #bbb; padding: .5rem 0 }
  td { border: 0; padding: .1rem 0; display: flex; gap: .8rem }
  td::before { content: attr(data-name); flex: 0 0 42%; color: #555 }
  td > span { min-width: 0; overflow-wrap: anywhere }
  td:first-child > span { font-weight: 600 }
}
@media print {
  body { max-width: none; font-size: 10pt; padding: 0 }
  .charts { grid-template-columns: 1fr 1fr }
  table { font-size: 8pt }
  svg, tr, .verdict { break-inside: avoid }
  h2 { break-after: avoid }
}
"""


def make_page(report: Report) -> str:
    """Return a self-contained HTML page, for screens of any width and for print."""
    verdict = report["verdict"]
    kind = verdict["word"].replace(" ", "-") or "none"
    body = [
        "<h1>Does R-Drop help here?</h1>",
        f'<p class="verdict {kind}">{escape(verdict["sentence"])}</p>',
        _failed(report),
        "<h2>Test scores</h2>",
        _html(tables.arms_table(report)),
        f'<p class="note">{escape(_reading(report))}</p>',
        f'<div class="charts">{"".join(_charts(report))}</div>',
        "<h2>How it was compared</h2>",
        "".join(f"<p>{escape(line)}</p>" for line in _protocol(report)),
        _items(f"{arm['arm']}: {arm['what']}" for arm in report["arms"]),
        _settings(report),
        "<h2>What the models are like</h2>",
        _html(tables.diagnostics_table(report)),
        '<p class="note">Means over seeds, of the checkpoints that were scored. '
        "Exploratory.</p>",
        "<h2>Cost</h2>",
        _html(tables.cost_table(report)),
        '<p class="note">Medians and means of these runs, which may have shared the '
        f"machine with each other. {escape(report['device'])}.</p>",
        "<h2>The config of plain, resolved</h2>",
        _pre("\n".join(f"{k} = {v!r}" for k, v in report["config"].items())),
        "<h2>Where the others differ from it</h2>",
        _html(tables.differences_table(report)),
        "<h2>Versions and data, at the first start</h2>",
        _pre("\n".join(f"{k} {v}" for k, v in report["versions"].items())),
        _pre("\n".join(f"{k} {v}" for k, v in report["data"].items())),
        "<h2>The command</h2>",
        _pre(report["command"]),
        "<h2>The table, to paste</h2>",
        _pre(tables.make_markdown(report)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>R-Drop compared</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _settings(report: Report) -> str:
    """Return the table of candidate settings; "" if each arm had only one."""
    if not report["protocol"]["selection_seeds"]:
        return ""
    return (
        "<h2>Settings that were tried</h2>"
        f'<p class="note">Exploratory: means of validation {_chooser(report)}, for '
        "choosing alone. No test data were read for these.</p>"
        + _html(tables.settings_table(report))
    )


def _chooser(report: Report) -> str:
    metric = report["metric"]
    return f"{metric['chosen_by']} ({metric['chosen_mode']})"


def _reading(report: Report) -> str:
    return (
        "Mean \u00b1 standard deviation over seeds. The interval over seeds is "
        "Student's t of the paired differences: would other seeds say the same? The "
        "interval over test examples draws the examples again and keeps the models: "
        "would another test set? p counts sign flips of the differences; with so few "
        "seeds it cannot be smaller than the number beside it. A verdict needs "
        f"{report['protocol']['min_seeds']} seeds, an interval over seeds without 0, "
        "and p of at most 0.05; it is given for rdrop alone."
    )


def _protocol(report: Report) -> list[str]:
    protocol = report["protocol"]
    each, chosen = protocol["trials_per_arm"], protocol["selection_seeds"]
    trials = f"{each} {'trial' if each == 1 else 'trials'}"
    choice = (
        f"{trials}, each on {chosen} seeds. The checkpoint of a run and the setting of "
        "an arm were chosen by the mean validation score."
        if chosen
        else f"{trials}, so only checkpoints were chosen, on validation data."
    )
    final = (
        "The chosen setting of each arm was then run on "
        f"{protocol['final_seeds']} fresh seeds"
        if chosen
        else f"Each arm was run on {protocol['final_seeds']} seeds"
    )
    lines = [
        f"Every arm had {choice} {final}, and only these runs read test data.",
        "Seed by seed all arms share initial parameters, data order, augmentation and, "
        "with few labels, the labelled subset. They make the same number of updates, "
        "except equal_compute. The objective is the mean over passes in all arms, so "
        "that one learning rate means the same.",
    ]
    if protocol["alphas"] > 1:
        lines.append(
            "What rdrop may choose among several alphas, arms without one may choose "
            "among as many learning rates: the config's times 1, 1/2, 2, 1/4, ..."
        )
    if protocol["cost_ratio"] is not None:
        lines.append(
            f"An update of rdrop took {protocol['cost_ratio']:.2f} times that of "
            "plain; equal_compute makes so many times the updates."
        )
    return lines


def _failed(report: Report) -> str:
    if not report["failed"]:
        return ""
    count = len(report["failed"])
    return (
        f'<div class="failed"><strong>{count} {"run" if count == 1 else "runs"} '
        "failed.</strong> Differences are over the seeds that both arms finished; a "
        "setting of which a run failed was not chosen."
        + _items(f"{name}: {why}" for name, why in report["failed"].items())
        + "</div>"
    )


def _items(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _charts(report: Report) -> list[str]:
    styles = {arm["arm"]: number for number, arm in enumerate(report["arms"])}
    metric = report["metric"]["name"]
    charts = [_interval_chart(report)]
    for name, curves in report["curves"].items():
        kl = name == "pass_kl"
        title = "KL between passes, training" if kl else name.replace("_", " ")
        y = "nats" if kl else name.split("_", 1)[1]
        charts.append(_line_chart(curves, styles, title, "updates", y))
    over_time = {
        arm: cost["curve"] for arm, cost in report["timings"].items() if cost["curve"]
    }
    title = f"validation {metric} against time"
    x = "seconds of training, at the median speed"
    charts.append(_line_chart(over_time, styles, title, x, metric))
    return [f"<figure style='margin:0'>{chart}</figure>" for chart in charts if chart]


def _line_chart(
    curves: Mapping[str, Any], styles: Mapping[str, int], title: str, x: str, y: str
) -> str:
    lines = [
        svg.Line(arm, styles[arm], *_finite(found)) for arm, found in curves.items()
    ]
    lines = [line for line in lines if line.x]
    return svg.line_chart(lines, title=title, x=x, y=y) if lines else ""


def _finite(found: Mapping[str, Any]) -> tuple[list[float], list[float], list[float]]:
    points = zip(found["x"], found["mean"], found["sd"], strict=True)
    kept = [(x, m, s or 0.0) for x, m, s in points if m is not None]
    return [p[0] for p in kept], [p[1] for p in kept], [p[2] for p in kept]


def _interval_chart(report: Report) -> str:
    rows = [
        svg.Interval(
            f"{arm['arm']}, {arm['setting']}" if arm["setting"] else arm["arm"],
            found["mean"],
            math.nan if found["low"] is None else found["low"],
            math.nan if found["high"] is None else found["high"],
            found["values"],
        )
        for arm in report["arms"]
        if (found := arm["difference"]) is not None
    ]
    if not rows:
        return ""
    name, mode = report["metric"]["name"], report["metric"]["mode"]
    better = "right" if mode == "max" else "left"
    return svg.interval_chart(
        rows,
        title="Test, minus plain: each seed, mean, 95 % over seeds",
        x=f"difference in test {name} ({better} is better)",
    )


def _html(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    cells = [
        "".join(
            f'<td data-name="{escape(name)}"><span>{escape(text)}</span></td>'
            for name, text in row.items()
        )
        for row in rows
    ]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    kind = "table wide" if len(rows[0]) > _COLUMNS else "table"
    return (
        f'<div class="{kind}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
