"""Folders of public datasets come from their sources; planned rows are valid."""

import json
from pathlib import Path

import pytest

from benchmarks import row_data, rows
from rdrop_jax import tasks
from rdrop_jax.cli import flags
from rdrop_jax.compare import program
from rdrop_jax.errors import InputError
from rdrop_jax.training import direction


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small clone of SST-2's source, and its checksums in place of the real ones."""
    folder = tmp_path / "clone" / "data" / "SST-2"
    folder.mkdir(parents=True)
    for name, count in (("train", 40), ("dev", 20), ("test", 10)):
        lines = [f"{name} sentence {i}\t{i % 2}" for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))
    files = row_data.DATASETS["sst2"].build(tmp_path / "clone")
    checksums = tmp_path / "row_data.json"
    found = {name: row_data.measured(content) for name, content in files.items()}
    checksums.write_text(json.dumps({"sst2": found}))
    monkeypatch.setattr(row_data, "_CHECKSUMS", checksums)
    return tmp_path / "clone"


def run(clone, output):
    row_data.main(["sst2", "--source", str(clone), "--output", str(output)])


def test_a_folder_is_written_from_its_source(clone, tmp_path):
    run(clone, tmp_path / "out")
    lines = (tmp_path / "out" / "train500.tsv").read_text().splitlines()
    assert lines[0] == "sentence\tlabel"
    assert [line[-1] for line in lines[1:]] == ["0"] * 20 + ["1"] * 20
    first = sorted(line for line in lines if line.endswith("0"))
    assert first != [line for line in lines if line.endswith("0")]  # in another order


def test_other_sources_are_refused(clone, tmp_path):
    (path,) = clone.rglob("test.tsv")
    path.write_text(path.read_text().replace("sentence 3", "sentence 33"))
    with pytest.raises(
        InputError, match=r"test\.tsv: expected 11 lines or images .* Check out "
    ):
        run(clone, tmp_path / "out")
    path.unlink()
    with pytest.raises(InputError, match=r"--source: incomplete: .*test\.tsv.*3c7ef2c"):
        run(clone, tmp_path / "out")
    with pytest.raises(InputError, match="--source: expected 2 folders, got 1"):
        row_data.build("wikitext2", [clone])
    assert not (tmp_path / "out").exists()


def test_every_dataset_has_checksums():
    found = json.loads(row_data._CHECKSUMS.read_text())
    assert found.keys() == row_data.DATASETS.keys()
    for source in [x for y in row_data.DATASETS.values() for x in y.sources]:
        assert len(source.partition("@")[2]) == 40


@pytest.mark.parametrize("name", rows.ROWS)
def test_a_planned_row_is_valid(name):
    row = rows.ROWS[name]
    given = [*rows.shared_flags(row, Path("data"), Path("weights"))]
    parser = flags.Parser()
    parser.add_argument("--config")
    args, overrides = flags.parse(parser, [*given, *rows.pilot_flags(row)])
    config = flags.load(args.config, overrides)
    assert (config.seed, config.rdrop.alpha, config.eval.test) == (100, 0, False)
    argv = [*given, *rows.comparison_flags(row, 100), "--workdir=w"]
    options, _, jobs = program.read_options(argv)
    assert (options.final_seeds, jobs) == (6, 1)
    assert direction(options.metric) == options.mode
    assert config.eval.metric == options.metric
    if not row.weights:  # weights complete the config
        with pytest.raises(InputError, match=r"data\.(dir|files)"):  # the only fault
            tasks.build(config).train_data()
    names = row_data.DATASETS
    files = json.loads(row_data._CHECKSUMS.read_text())[row.data]
    assert row.data in names
    for split in ("train", "validation", "test"):
        start = row.fields.get(f"data.files.{split}", f"{split}.npz")
        assert any(file.startswith(start) for file in files)


def test_a_pilot_sets_the_steps():
    assert rows.steps_after(60, 160) == 100
    assert rows.steps_after(64, 160) == 110
    assert rows.steps_after(160, 160) == 160


def test_the_commands_of_a_row_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(rows.subprocess, "run", None)
    rows.main(["sst2_settings", "--print", "--data=D", "--weights=W"])
    pilot, steps, compared = capsys.readouterr().out.splitlines()
    assert "--workdir=runs/rows/pilots/sst2" in pilot
    assert json.loads(steps) == {"pilot": 160, "best": 160, "steps": 160}
    assert compared.startswith("python -m rdrop_jax.compare --config=configs/glue.py")
    assert "--config.data.dir=D/sst2 " in compared
    assert "--alphas=1,5 --seeds=3 --final_seeds=6 --arms=plain " in compared
    assert compared.endswith("--workdir=runs/rows/sst2_settings")
