"""Pilot and comparison of one row of docs/results/plan.md.

    python -m benchmarks.rows sst2 --data FOLDER --weights FOLDER --workdir runs/rows

FOLDER of --data contains the folders of `benchmarks.row_data`, that of --weights those
of `benchmarks.row_weights`. The same command resumes. --print shows the commands.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rdrop_jax.cli import flags, process
from rdrop_jax.errors import InputError
from rdrop_jax.files import disk


@dataclass(frozen=True)
class PlannedRow:
    """One row of the plan.

    Attributes:
      config: FILE[:PRESET].
      data: folder of the data, in that of --data.
      weights: folder of the weights, in that of --weights; empty: from scratch.
      fields: config fields and their values.
      pilot: steps of the pilot.
      metric: score of the verdict.
      rates: learning rates.
      dropouts: dropout rates.
      alphas: alphas of rdrop.
      seeds: seeds that choose the settings.
      arms: arms in addition to plain and rdrop.
      pilot_of: row whose pilot sets the steps; empty: its own.
    """

    config: str
    data: str
    weights: str
    fields: dict[str, str]
    pilot: int
    metric: str
    rates: tuple[str, str]
    dropouts: tuple[str, str] = ("0.1", "0.2")
    alphas: str = "1,5"
    seeds: int = 1
    arms: str = "two_passes,equal_compute"
    pilot_of: str = ""

    def changed(self, pilot: int, **fields: str) -> "PlannedRow":
        """Return a row with other fields, whose dots are written as __."""
        fields = {name.replace("__", "."): text for name, text in fields.items()}
        return replace(self, pilot=pilot, fields=self.fields | fields)


def _files(train: str, validation: str, test: str) -> dict[str, str]:
    names = {"train": train, "validation": validation, "test": test}
    return {f"data.files.{split}": name for split, name in names.items()}


_MINILM = {
    "model.size": "MiniLM-L6",
    "model.vocab_size": "30522",
    "data.buckets": "2",
    "batch_size": "16",
    "optimizer.warmup": "10%",
    "eval.batch_size": "128",
}
_SMALL = {"model.width": "128", "model.heads": "4", "model.mlp_width": "256"}
_TRANSLATOR = _SMALL | {
    "batch_tokens": "512",
    "data.max_length": "64",
    "data.buckets": "3",
    "eval.beam": "1",
}
_SST2 = PlannedRow(
    "configs/glue.py:files",
    "sst2",
    "minilm",
    _MINILM
    | _files("train500.tsv", "validation.tsv", "test.tsv")
    | {"data.columns.text": "sentence", "data.max_length": "64"},
    pilot=160,
    metric="accuracy",
    rates=("1e-4", "5e-5"),
)
_CONLL2003 = replace(
    _SST2,
    config="configs/glue.py:words",
    data="conll2003",
    fields=_MINILM
    | _files("train500.txt", "validation500.txt", "test.txt")
    | {"data.max_length": "128"},
    pilot=200,
    metric="f1",
    rates=("3e-4", "1e-4"),
)
_TATOEBA = PlannedRow(
    "configs/nmt.py:files",
    "tatoeba",
    "",
    _TRANSLATOR
    | _files("train5000", "validation300", "test")
    | {"data.source": "de", "data.target": "en"},
    pilot=2000,
    metric="bleu",
    rates=("2e-3", "1e-3"),
    dropouts=("0.1", "0.3"),
)
_SWAHILI = replace(
    _TATOEBA,
    data="english_swahili",
    fields=_TRANSLATOR
    | _files("train5000", "validation300", "test1000")
    | {"data.source": "en", "data.target": "sw", "eval.metric": "chrf"},
    metric="chrf",
)
_WIKITEXT2 = PlannedRow(
    "configs/lm.py:files",
    "wikitext2",
    "",
    _SMALL
    | _files("train300000.txt", "validation50000.txt", "test.txt")
    | {
        "model.layers": "2",
        "data.tokens": "words",
        "data.vocab_size": "10000",
        "data.block_size": "64",
        "eval.block_size": "64",
        "eval.context": "32",
        "eval.new_tokens": "32",
        "batch_size": "16",
        "optimizer.clip": "1.0",
    },
    pilot=1500,
    metric="perplexity",
    rates=("3e-3", "1.5e-3"),
    dropouts=("0.1", "0.3"),
)
_AESLC = PlannedRow(
    "configs/summarization.py",
    "aeslc",
    "",
    _files("train5000.jsonl", "validation300.jsonl", "test1000.jsonl")
    | {
        "data.name": "files",
        "data.columns.source": "body",
        "data.columns.target": "subject",
        "data.vocab_size": "4000",
        "data.max_target_length": "24",
        "eval.beam": "1",
        "eval.min_length": "2",
        "eval.max_length": "24",
    },
    pilot=800,
    metric="rougeL",
    rates=("2e-3", "1e-3"),
    dropouts=("0.1", "0.3"),
)
_CIFAR100 = PlannedRow(
    "configs/vit.py:folder",
    "cifar100_small",
    "dinov2_small",
    {
        "data.name": "npz",
        "data.num_classes": "100",
        "data.labelled": "500",
        "data.image_size": "56",
        "data.mean": "(0.485,0.456,0.406)",
        "data.std": "(0.229,0.224,0.225)",
        "data.interpolation": "bicubic",
        "data.crop": "none",
        "data.eval_crop": "0",
        "data.workers": "0",
        "data.prefetch": "0",
        "optimizer.name": "adam",
        "optimizer.layer_decay": "0.6",
        "optimizer.weight_decay": "0.05",
        "optimizer.decay": "matrices",
        "optimizer.warmup": "10%",
        "batch_size": "16",
        "eval.batch_size": "100",
    },
    pilot=300,
    metric="accuracy",
    rates=("3e-4", "1e-4"),
    dropouts=("0.02", "0.1"),
)


def _on_cpu(row: PlannedRow) -> PlannedRow:
    return replace(row, alphas="1", arms="equal_compute")


ROWS = {
    "sst2": replace(_SST2, alphas="1"),
    "conll2003": _on_cpu(_CONLL2003),
    "tatoeba": _on_cpu(_TATOEBA),
    "wikitext2": _on_cpu(_WIKITEXT2),
    "aeslc": _on_cpu(_AESLC),
    "english_swahili": _on_cpu(_SWAHILI),
    "cifar100_dinov2": _on_cpu(_CIFAR100),
    "sst2_settings": replace(_SST2, seeds=3, arms="plain", pilot_of="sst2"),
    # The larger versions, for a GPU.
    "sst2_5000": _SST2.changed(1600, data__files__train="train5000.tsv"),
    "conll2003_2000": _CONLL2003.changed(1000, data__files__train="train2000.txt"),
    "tatoeba_all": _TATOEBA.changed(
        40_000, data__files__train="train", batch_tokens="4096", model__width="256"
    ),
    "english_swahili_all": _SWAHILI.changed(
        20_000, data__files__train="train", batch_tokens="4096", model__width="256"
    ),
    "wikitext2_all": _WIKITEXT2.changed(
        20_000, data__files__train="train.txt", data__files__validation="validation.txt"
    ),
    "cifar100_dinov2_2000": replace(_CIFAR100, data="cifar100").changed(
        1500, data__labelled="2000", data__image_size="224"
    ),
    "cifar100_dinov2_10000": replace(_CIFAR100, data="cifar100").changed(
        7000, data__labelled="10000", data__image_size="224"
    ),
}


def shared_flags(row: PlannedRow, data: Path, weights: Path) -> list[str]:
    """Return the flags that pilot and comparison share."""
    fields = row.fields | {"data.dir": str(data / row.data)}
    if row.weights:
        fields["init_from"] = str(weights / row.weights)
    given = [f"--config.{name}={text}" for name, text in sorted(fields.items())]
    return [f"--config={row.config}", *given]


def pilot_flags(row: PlannedRow) -> list[str]:
    """Return the flags of the pilot: plain, seed 100, first rates, no test data."""
    fields = {
        "seed": "100",
        "rdrop.alpha": "0",
        "rdrop.objective_scale": "mean",
        "eval.test": "false",
        "optimizer.lr": row.rates[0],
        "model.dropout": row.dropouts[0],
        "total_steps": str(row.pilot),
        **dict.fromkeys(
            ("eval.every", "log.every", "checkpoint.every"), str(row.pilot // 10)
        ),
    }
    return [f"--config.{name}={text}" for name, text in fields.items()]


def comparison_flags(row: PlannedRow, steps: int) -> list[str]:
    """Return the flags of the comparison."""
    return [
        f"--alphas={row.alphas}",
        f"--seeds={row.seeds}",
        "--final_seeds=6",
        f"--arms={row.arms}",
        f"--vary=optimizer.lr={','.join(row.rates)}",
        f"--vary=model.dropout={','.join(row.dropouts)}",
        f"--metric={row.metric}",
        f"--config.total_steps={steps}",
        f"--config.eval.every={steps // 5}",
    ]


def steps_after(best: int, pilot: int) -> int:
    """Return the comparison's steps: 5/3 of the pilot's best, at most the pilot's."""
    return min(-(-best * 5 // 30) * 10, pilot)


def run(command: Sequence[str], printed: bool) -> None:
    """Run a program, or print its command line.

    Raises:
      InputError: the program failed; it has printed why.
    """
    print(shlex.join(["python", *command]), flush=True)
    if not printed and subprocess.run([sys.executable, *command]).returncode:
        raise InputError(f"{command[1]} failed. Run the same command to resume.")


def main(argv: Sequence[str]) -> None:
    """Run the pilot of a row, then its comparison."""
    parser = flags.Parser(prog="benchmarks.rows", description=__doc__)
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("--data", type=flags.path, default=Path("data"))
    parser.add_argument("--weights", type=flags.path, default=Path("weights"))
    parser.add_argument("--workdir", type=flags.path, default=Path("runs/rows"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--print", action="store_true")
    args = parser.parse_args(argv)
    row = ROWS[args.name]
    pilot_name = row.pilot_of or args.name
    workdir = args.workdir / "pilots" / pilot_name
    shared = shared_flags(row, args.data, args.weights)
    pilot = [*shared, *pilot_flags(ROWS[pilot_name]), f"--workdir={workdir}"]
    result = workdir / "result.json"
    if not result.exists():
        run(["-m", "rdrop_jax.train", *pilot], args.print)
    best = disk.read_json(result)["checkpoint_step"] if result.exists() else row.pilot
    steps = steps_after(best, row.pilot)
    print(json.dumps({"pilot": row.pilot, "best": best, "steps": steps}), flush=True)
    compared = [*shared, *comparison_flags(row, steps)]
    compared += [f"--jobs={args.jobs}", f"--workdir={args.workdir / args.name}"]
    run(["-m", "rdrop_jax.compare", *compared], args.print)


if __name__ == "__main__":
    process.run(main)
