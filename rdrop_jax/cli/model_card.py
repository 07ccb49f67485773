"""Model card of an exported run: README.md with the front matter of the Hub."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub
from rdrop_jax.files.disk import read_json
from rdrop_jax.training import workdir as workdir_lib
from rdrop_jax.training.trackers import scores_of

_CARD = """\
---
{front}
---

# {title}

{method}

| field | value |
| --- | --- |
{objective}

## Scores

{scores}

## Data

`{data}`

| name | checksum or description |
| --- | --- |
{checksums}

## Training

{training}
"""
_OBJECTIVE = (
    *("alpha", "label_smoothing", "divergence", "stop_gradient"),
    *("objective_scale", "every", "alpha_warmup", "dropouts"),
    *("views", "views_rate"),
)
# Programs by the last part of their path, which readers of a card do not have.
_PROGRAMS = {"train.py": "python -m rdrop_jax.train", "rdrop-jax": "rdrop-jax train"}


def model_card(
    config: ConfigDict, workdir: Path, step: int, format: str, license: str = ""
) -> str:
    """Return the model card of a checkpoint, in Markdown.

    Args:
      config: config of the run.
      workdir: folder of the run, with its scores and the checksums of its data.
      step: step of the exported checkpoint.
      format: format of the export; "safetensors" is that of transformers.
      license: identifier for the front matter; "" leaves the license out.
    """
    result = _result(workdir)
    return _CARD.format(
        front="\n".join(
            f"{name}: {json.dumps(value)}"  # JSON is YAML
            for name, value in _front(config, format, license).items()
        ),
        title=workdir.resolve().name,
        method=_method(config),
        objective=_rows({n: config.rdrop[n] for n in _OBJECTIVE}),
        scores=_scores(result, step),
        data=config.data.name or config.data.dir or "files",
        checksums=_rows(result.get("data") or workdir_lib.recorded_data(workdir)),
        training=_training(config, result, step),
    )


def _result(workdir: Path) -> dict[str, Any]:
    """Return the content of result.json; empty if the run is not complete."""
    try:
        return read_json(workdir / "result.json")
    except InputError:
        return {}


def _front(config: ConfigDict, format: str, license: str) -> dict[str, Any]:
    task = "text-generation" if config.task == "language_model" else config.task
    if config.data.get("labels") == "words":
        task = "token-classification"
    front: dict[str, Any] = {"license": license} if license else {}
    if format == "safetensors":
        front["library_name"] = "transformers"
    front["pipeline_tag"] = task.replace("_", "-")
    if hub.is_name(config.init_from):
        front["base_model"] = hub.parse("init_from", config.init_from).repo
    if hub.is_name(config.data.name):
        front["datasets"] = [hub.parse("data.name", config.data.name, parts=True).repo]
    return front | {"tags": ["r-drop"]}


def _method(config: ConfigDict) -> str:
    r = config.rdrop
    passes = resolve_num_passes(r.alpha, r.num_passes)
    views = ""
    if r.views not in ("none", "simcut"):
        views = f" Inputs are augmented in each pass: {r.views} of rdrop_jax's views."
    if r.alpha == 0 or passes == 1:
        text = "without R-Drop: alpha is 0 or the step has one pass."
    elif r.views == "simcut":
        text = "with SimCut (Gao et al., 2022): the second pass reads cut inputs."
    else:
        text = (
            f"with R-Drop (arXiv:2106.14448): {passes} passes with dropout per step, "
            "and loss = cross entropy + alpha * divergence of the passes."
        )
    return f"Trained by rdrop_jax {text}{views}"


def _scores(result: Mapping[str, Any], step: int) -> str:
    if not (scores := scores_of(result)):
        return f"None: the run was not complete. The weights are those of step {step}."
    names = list(dict.fromkeys(name for x in scores.values() for name in x))
    lines = [f"| split | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for split, found in scores.items():
        cells = (f"{found[n]:.5g}" if n in found else "" for n in names)
        lines.append(f"| {split} | {' | '.join(cells)} |")
    scored = result.get("checkpoint_step")
    if scored != step:
        lines += ["", f"These are scores of step {scored}; the weights: step {step}."]
    return "\n".join(lines)


def _training(config: ConfigDict, result: Mapping[str, Any], step: int) -> str:
    run = result.get("run", {})
    program, *words = [str(word) for word in run.get("command", [])] or [""]
    program = _PROGRAMS.get(Path(program).name, program)
    text = f"    {program} {shlex.join(words)}\n\n" if program else ""
    versions = run.get("versions", {})
    fields = {
        "step": step,
        "total steps": config.total_steps,
        "seed": config.seed,
        "initial weights": config.init_from or "random",
        "commit of the initial weights": result.get("init", {}).get("commit"),
        "devices": run.get("devices"),
        "versions": ", ".join(f"{name} {x}" for name, x in versions.items()),
    }
    table = _rows({name: x for name, x in fields.items() if x not in (None, "")})
    return f"{text}| field | value |\n| --- | --- |\n{table}"


def _rows(values: Mapping[str, Any]) -> str:
    """Return the rows of a table of two columns."""
    return "\n".join(f"| {_cell(name)} | {_cell(x)} |" for name, x in values.items())


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", r"\|").split())
