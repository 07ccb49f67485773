"""Table of compiled presets, from JSON files."""

import json
import runpy

import pytest

from benchmarks import presets

COSTS = {
    "state": 2**30,
    "temporary": 2**31,
    "unaliased": 0,
    "products": 4.0,
    "bytes": 3.0,
}


@pytest.fixture
def folder(tmp_path):
    def write(job, *, quick=False, **costs):
        file = job.file(tmp_path, quick=quick)
        file.parent.mkdir(exist_ok=True)
        costs |= {"quick": quick}
        file.write_text(json.dumps({"set": {}, "collectives": {}} | COSTS | costs))

    programs = {program.name: program for program in presets.PROGRAMS}
    first, second = programs["cifar100"], programs["wmt14_en_de"]
    flagged = {"model.remat": "true", "accum_steps": "2"}
    write(presets.preset_job(first, "gpu:24g"), set=flagged, recomputed=1)
    write(presets.preset_job(second, "gpu:h100"))
    write(presets.plain_job(second, "gpu:h100"), products=2.0, bytes=2.0)
    for quick, temporary in ((False, 2**31), (True, 2**32)):
        write(
            presets.preset_job(second, "tpu:v5e:2x4"), quick=quick, temporary=temporary
        )
    write(presets.plain_job(second, "tpu:v5e:2x4"), quick=True)
    write(presets.preset_job(first, "tpu:v5e:2x4"), quick=True)
    write(presets.mesh_job("8 x 1 x 1", "gpu:h100:8"), collectives={"all-reduce": 2})
    mesh = presets.mesh_job("1 x 8 x 1", "tpu:v5e:2x4")
    write(mesh, quick=True, collectives={"all-gather": 3})
    failed = presets.preset_job(first, "gpu:h100").file(tmp_path)
    failed.write_text(json.dumps({"error": "error: --fit: expected at most 1 GiB"}))
    return tmp_path


def test_a_row_has_memory_flags_errors_and_gaps(folder):
    row = "| cifar100 | --fit: expected at most 1 GiB | 3.0* `remat accum_steps=2` |"
    assert presets.fits(folder)[2].startswith(row)
    assert presets.fits(folder)[2].endswith("| not compiled |")


def test_ratios_of_the_same_flags(folder):
    assert "| wmt14_en_de | gpu:h100 | 2.00 | 1.50 | 1.00 |" in presets.ratios(folder)


def test_quick_results_fill_gaps_with_a_mark(folder):
    # cifar100 has only a result of --quick, wmt14_en_de has both.
    assert "| 3.0q | not compiled |" in presets.fits(folder)[2]
    assert "| 3.0 | not compiled | 3.0 |" in presets.fits(folder)[3]
    # Plain training has only a result of --quick, so the ratio compares with R-Drop's.
    assert "| wmt14_en_de | tpu:v5e:2x4 q | 1.00 | 1.00 | 2.00 |" in presets.ratios(
        folder
    )


def test_collectives_of_a_mesh(folder):
    assert "| 8 x 1 x 1 | 2 all-reduce | not compiled |" in presets.collectives(folder)
    assert "| 1 x 8 x 1 | not compiled | 3 all-gather q |" in presets.collectives(
        folder
    )


def test_the_docs_have_a_place_for_each_table(folder, monkeypatch):
    docs = folder / "compile.md"
    docs.write_text(presets.DOCS.read_text())
    monkeypatch.setattr(presets, "DOCS", docs)
    presets.table(folder)
    assert "| wmt14_en_de | gpu:h100 | 2.00 | 1.50 | 1.00 |" in docs.read_text()


def test_every_preset_of_the_paper_is_in_the_table():
    own = {
        "demo",
        "files",
        "words",
        "folder",
        "folder_dinov2",
        "chars",
        "scitldr",
        "cifar100_scratch",
    }
    for name in ("vit", "nmt", "lm", "summarization", "glue"):
        known = set(runpy.run_path(f"configs/{name}.py")["PRESETS"]) - own
        programs = [p for p in presets.PROGRAMS if p.spec.startswith(f"{name}.py")]
        listed = {p.name for p in programs}
        for p in programs:
            model = p.name.partition("_")[2]
            others = filter(None, p.shared.split(", "))
            listed |= {f"{x}_{model}" if name == "glue" else x for x in others}
        assert listed == known
