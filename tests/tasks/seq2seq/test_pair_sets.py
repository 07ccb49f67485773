"""Parallel corpora by name: found, split, and what is missing said at once."""

import json

import pytest
from helpers import tiny_nmt

from rdrop_jax import tasks
from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.flags import load
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.tasks.translation import translation_sets

FILES = {
    "data.name": "files",
    "data.files.train": "train.tsv",
    "data.columns.source": "0",
    "data.columns.target": "1",
}


def data(**overrides):
    changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return load(tiny_nmt.NMT, changed).data


def test_splits_that_are_not_there_are_held_out(tmp_path):
    rows = [f"satz {i}\tsentence {i}" for i in range(100)]
    (tmp_path / "train.tsv").write_text("\n".join([*rows, "leer\t"]))
    found = translation_sets.find(
        load(tiny_nmt.NMT, FILES | {"data.dir": str(tmp_path)}).data
    )
    splits = {split: read() for split, read in found.splits.items()}
    sizes = {split: len(pairs) for split, pairs in splits.items()}
    assert sizes == {"train": 80, "validation": 10, "test": 10}
    everything = [s for pairs in splits.values() for s in pairs.source]
    assert sorted(everything) == sorted(f"satz {i}" for i in range(100))
    assert "1 pairs with an empty source or target dropped" in splits["train"].notes[0]
    assert list(found.provenance()) == ["train.tsv"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a\t", "b\t"], "found 2, 2 of them with an empty text"),
        (["a\tx"] * 30, "found 30, 0 of them with an empty text and the rest"),
    ],
)
def test_nothing_left_to_train_on_is_said(tmp_path, rows, message):
    (tmp_path / "train.tsv").write_text("\n".join(rows))
    found = translation_sets.find(
        load(tiny_nmt.NMT, FILES | {"data.dir": str(tmp_path)}).data
    )
    with pytest.raises(InputError, match=message):
        found.splits["train"]()


def test_training_pairs_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "train.tsv").write_text("".join(f"a {i}\tb {i}\n" for i in range(30)))
    read, opened = parallel.read, []
    monkeypatch.setattr(
        parallel, "read", lambda *args: opened.append(args) or read(*args)
    )
    found = translation_sets.find(
        load(tiny_nmt.NMT, FILES | {"data.dir": str(tmp_path)}).data
    )
    assert [len(found.splits[split]()) for split in SPLITS] == [24, 3, 3]
    assert len(opened) == 1


def test_other_files_are_no_splits(tmp_path):
    for name in ("train.en", "train.de", "test_notes.txt", "validation_old.de"):
        (tmp_path / name).write_text("".join(f"{name} {i}\n" for i in range(30)))
    fields = {"data.dir": str(tmp_path), "data.source": "de", "data.target": "en"}
    config = tasks.check_data(load("configs/nmt.py:files", fields))
    assert (config.data.files.validation, config.data.files.test) == ("", "")


def test_a_held_out_pair_with_an_empty_side_stays(tmp_path):
    tiny_nmt.write(tmp_path)
    with (tmp_path / "test.tsv").open("a") as file:
        file.write("\tNOTHING\n")
    splits = translation_sets.find(tiny_nmt.config(tmp_path).data).splits
    assert splits["test"]().target[-1] == "NOTHING"


def test_what_is_missing_is_said_before_jax(tmp_path):
    for overrides, message in (
        (
            {"data__name": "wmt"},
            r"data\.name: expected one of cldr_names, files, iwslt",
        ),
        ({"data__name": "files"}, r"data\.files\.train: expected a table"),
        (
            {"data__name": "files", "data__dir": tmp_path, "data__files__train": "a"},
            r"data.files.train: expected .*/a\.en or a\.en\.gz, found neither",
        ),
        (
            {"data__name": "tfds:wmt14_translate/de-en", "data__dir": tmp_path},
            r"rdrop_jax\.prepare tfds:wmt14_translate/de-en --data_dir",
        ),
    ):
        changed = {k.replace("__", "."): str(v) for k, v in overrides.items()}
        with pytest.raises(InputError, match=message):
            tasks.check_data(load(tiny_nmt.NMT, changed))


def test_a_corpus_of_the_catalogue(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Pairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.Translation(("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {split: self._generate_examples() for split in SPLITS}

        def _generate_examples(self):
            for row in range(4):
                yield row, {"de": f"Zeile  {row}\n", "en": f"line {row} \u00fc"}
            yield 4, {"de": "\n", "en": "of nothing"}

    Pairs(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = translation_sets.find(data(data__name="tfds:pairs", data__dir=tmp_path))
    pairs = found.splits["test"]()
    assert sorted(zip(pairs.target, pairs.source, strict=True)) == [
        ("", "of nothing"),
        *((f"Zeile {row}", f"line {row} \u00fc") for row in range(4)),
    ]
    train = found.splits["train"]()
    assert len(train) == 4
    assert train.notes[0].endswith("1 pairs with an empty source or target dropped")
    other = data(data__name="tfds:pairs", data__dir=tmp_path, data__target="fr")
    read = translation_sets.find(other).splits["test"]
    with pytest.raises(
        InputError, match=r"row 0: expected a text under data\.columns 'fr', found"
    ):
        read()
    (info,) = tmp_path.rglob("dataset_info.json")
    stored = json.loads(info.read_text())
    stored["splits"] = stored["splits"][:1]
    info.write_text(json.dumps(stored))
    some = data(data__name="tfds:pairs", data__dir=tmp_path, data__test=1)
    found = translation_sets.find(some)
    counts = {split: len(found.splits[split]()) for split in SPLITS}
    assert sum(counts.values()) == 4  # the only split left is cut
    assert counts["test"] == 1
