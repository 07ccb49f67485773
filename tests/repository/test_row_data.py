"""Folders of public datasets are made from their sources, or refused in one line."""

import json

import pytest

from benchmarks import row_data
from rdrop_jax.errors import InputError


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small clone of SST-2's source, and its checksums in place of the real ones."""
    folder = tmp_path / "clone" / "data" / "SST-2"
    folder.mkdir(parents=True)
    for name, rows in (("train", 40), ("dev", 20), ("test", 10)):
        lines = [f"{name} sentence {i}\t{i % 2}" for i in range(rows)]
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
