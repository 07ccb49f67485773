"""Compile the presets of the paper's datasets for GPUs and TPUs; tabulate the costs.

    python -m benchmarks.presets run DIR    # stop and resume it; takes hours
    python -m benchmarks.presets run DIR --quick    # only TPUs, fewer optimizations
    python -m benchmarks.presets table DIR    # updates docs/compile.md

Presets that only differ in data share one program, which is compiled once per target.
The tables use the results of --quick if the full compilation is absent.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[1] / "docs" / "compile.md"
TARGETS = {
    "gpu:h100": "H100: 59.3",
    "gpu:24g": "RTX 4090: 17.7",
    "tpu:v5e:2x4": "v5e-8: 15.7",
    "gpu:h100:8": "8 H100: 59.3",
    "tpu:v4:2x2x1": "v4-8: 30.7",
}
RATIOS = ("gpu:h100", "tpu:v5e:2x4")
EIGHT = ("gpu:h100:8", "tpu:v5e:2x4")
_NONE: Mapping[str, str] = MappingProxyType({})
_WORDS = {"data.vocab_size": "267735"}  # of WikiText-103


class Program(NamedTuple):
    """Train step that presets share.

    Attributes:
      spec: config file and preset.
      shared: further presets with this program.
      fields: fields that the data would set.
      ratio: True to compile plain training, too.
    """

    spec: str
    shared: str = ""
    fields: Mapping[str, str] = _NONE
    ratio: bool = False

    @property
    def name(self) -> str:
        """The preset."""
        return self.spec.partition(":")[2]


# In order of importance.
PROGRAMS = (
    Program("vit.py:cifar100"),
    Program("glue.py:sst2_bert_base", "mnli, qnli, qqp", ratio=True),
    Program("summarization.py:cnn_dailymail", ratio=True),
    Program(
        "nmt.py:iwslt14_de_en",
        "iwslt14_en_de, iwslt14_es_en, iwslt14_en_es, iwslt17_fr_en, iwslt17_en_fr",
    ),
    Program("nmt.py:wmt14_en_de", "wmt14_en_fr", ratio=True),
    Program("lm.py:wikitext103", fields=_WORDS, ratio=True),
    Program("glue.py:sst2_roberta_large", "mnli, qnli, qqp", ratio=True),
    Program("lm.py:wikitext103_adaptive", fields=_WORDS, ratio=True),
    Program("vit.py:imagenet"),
    Program("glue.py:rte_bert_base"),
    Program("glue.py:rte_roberta_large"),
    Program("nmt.py:iwslt17_zh_en", "iwslt17_en_zh"),
    Program("glue.py:cola_bert_base", "mrpc"),
    Program("glue.py:cola_roberta_large", "mrpc"),
    Program("vit.py:cifar100_l16"),
    Program("vit.py:imagenet_l16"),
    Program("glue.py:stsb_bert_base"),
    Program("glue.py:stsb_roberta_large"),
)
# Meshes of eight devices, data x fsdp x tensor, of a Vision Transformer of two layers.
_SMALL = {"model.layers": "2", "model.dtype": "bfloat16"}
MESHES = {
    "8 x 1 x 1": {},
    "1 x 8 x 1": {"mesh.fsdp": "8"},
    "2 x 4 x 1": {"mesh.fsdp": "4"},
    "2 x 1 x 4": {"mesh.tensor": "4"},
    "8 x 1 x 1, `accum_steps=2`": {"accum_steps": "2"},
}


class Job(NamedTuple):
    """Compilation, and its name within the folder."""

    name: str
    spec: str
    target: str
    fields: Mapping[str, str]

    def file(self, folder: Path, *, quick: bool = False) -> Path:
        """Return the JSON file."""
        name = f"{self.name}_quick.json" if quick else f"{self.name}.json"
        return folder / self.target.replace(":", "_") / name

    def read(self, folder: Path, *, quick: bool | None = None) -> dict[str, Any]:
        """Return the costs, an error, or an empty dict if not yet compiled.

        Args:
          folder: folder of the JSON files.
          quick: True for the results of --quick, False for those of the full
            compilation; None for the latter, or the former if absent.
        """
        for choice in (False, True) if quick is None else (quick,):
            file = self.file(folder, quick=choice)
            if file.exists():
                return json.loads(file.read_text())
        return {}


def preset_job(program: Program, target: str) -> Job:
    """Return the compilation of a preset."""
    return Job(program.name, program.spec, target, program.fields)


def plain_job(program: Program, target: str) -> Job:
    """Return the compilation of a preset without R-Drop."""
    fields = {**program.fields, "rdrop.alpha": "0"}
    return Job(f"{program.name}_plain", program.spec, target, fields)


def mesh_job(mesh: str, target: str) -> Job:
    """Return the compilation of a small model on a mesh of eight devices."""
    fields = _SMALL | MESHES[mesh]
    name = "_".join(["mesh", *(f"{k}_{v}" for k, v in MESHES[mesh].items())])
    return Job(name, "vit.py:cifar100", target, fields)


def jobs() -> Iterator[Job]:
    """Yield all compilations, in order of importance."""
    for target in EIGHT:
        yield from (mesh_job(mesh, target) for mesh in MESHES)
    for program in PROGRAMS:
        yield from (preset_job(program, target) for target in TARGETS)
        if program.ratio:
            yield from (plain_job(program, target) for target in RATIOS)


def run(folder: Path, *, quick: bool) -> None:
    """Compile one program after the other; skip those that have a JSON file."""
    for job in jobs():
        file = job.file(folder, quick=quick)
        if file.exists() or (quick and not job.target.startswith("tpu:")):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "rdrop_jax.compile", "--fit"]
        command += ["--config", f"configs/{job.spec}", "--target", job.target]
        command += [f"--config.{k}={v}" for k, v in job.fields.items()]
        command += ["--quick"] if quick else []
        log = file.with_suffix(".log")
        with log.open("w") as out:
            code = subprocess.run(
                [*command, "--json", str(file)], stdout=out, stderr=out, check=False
            ).returncode
        if code > 0:  # negative if it was killed, which says nothing
            file.write_text(json.dumps({"error": log.read_text().splitlines()[-1]}))
        print(time.strftime("%H:%M:%S"), file, code, flush=True)


def cell(found: dict[str, Any]) -> str:
    """Return memory and flags of a compilation."""
    if not found:
        return "not compiled"
    if "error" in found:
        return found["error"].removeprefix("error: ").replace("|", "/")
    needed = found["state"] + found["temporary"] + found["unaliased"]
    mark = "*" * bool(found.get("recomputed")) + "q" * bool(found.get("quick"))
    short = [
        k.rpartition(".")[2] if v == "true" else f"{k.rpartition('.')[2]}={v}"
        for k, v in found["set"].items()
    ]
    return f"{needed / 2**30:.1f}{mark}" + (f" `{' '.join(short)}`" if short else "")


def fits(folder: Path) -> list[str]:
    """Return the table of memory and flags of the presets compiled for any target."""
    lines = [
        "| preset | " + " | ".join(TARGETS.values()) + " |",
        "| --- |" + " --- |" * len(TARGETS),
    ]
    for program in PROGRAMS:
        shared = f" ({program.shared})" if program.shared else ""
        found = [preset_job(program, target).read(folder) for target in TARGETS]
        if any(found):
            cells = " | ".join(map(cell, found))
            lines.append(f"| {program.name}{shared} | {cells} |")
    return lines


def ratios(folder: Path) -> list[str]:
    """Return the table of R-Drop over plain training, where both are compiled."""
    lines = [
        "| preset | target | operations | bytes moved | temporary memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for target in RATIOS:
        for program in (program for program in PROGRAMS if program.ratio):
            for quick in (False, True):
                ours, plain = (
                    job(program, target).read(folder, quick=quick)
                    for job in (preset_job, plain_job)
                )
                if "state" in ours and "state" in plain:
                    break
            else:
                continue
            same = ours["set"] == plain["set"]
            fields = ("products", "bytes", "temporary")
            cells = [f"{ours[x] / plain[x]:.2f}" for x in fields]
            cells = cells if same else [cells[0], *["other flags fit"] * 2]
            shown = target + " q" * quick
            lines.append(f"| {program.name} | {shown} | " + " | ".join(cells) + " |")
    return lines


def collectives(folder: Path) -> list[str]:
    """Return the table of collective operations per mesh."""
    lines = [
        "| data x fsdp x tensor | " + " | ".join(EIGHT) + " |",
        "| --- |" + " --- |" * len(EIGHT),
    ]
    for mesh in MESHES:
        cells = []
        for target in EIGHT:
            found = mesh_job(mesh, target).read(folder)
            counts = found.get("collectives", {})
            shown = ", ".join(f"{n} {name}" for name, n in counts.items())
            mark = " q" * bool(found.get("quick"))
            cells.append(shown + mark if shown else cell(found))
        lines.append(f"| {mesh} | " + " | ".join(cells) + " |")
    return lines


def table(folder: Path) -> None:
    """Write all tables into the docs, between their marks."""
    text = DOCS.read_text()
    for make in (fits, ratios, collectives):
        begin, end = f"<!-- {make.__name__} -->\n", f"<!-- end {make.__name__} -->"
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = before + begin + "\n".join(make(folder)) + "\n" + end + after
    DOCS.write_text(text)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="run: only TPUs, with --quick of rdrop_jax.compile",
    )
    args = parser.parse_args()
    if args.what == "run":
        run(args.folder, quick=args.quick)
    else:
        table(args.folder)


if __name__ == "__main__":
    main()
