"""Text and labels as they come from users: encodings, formats, classes."""

import gzip
import json

import numpy as np
import pytest
from helpers import tiny_nmt

from rdrop_jax.cli.predict import check_list
from rdrop_jax.data import labels, subwords, tables, tokenizers
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.tasks.classification import class_answer
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.tasks.seq2seq.translator import (
    Answer,
    make_predictor,
    read_lines,
    read_texts,
)
from rdrop_jax.tasks.text_classification import texts
from rdrop_jax.tasks.text_classification.texts import (
    Columns,
    collect,
    encode_labels,
    find_classes,
)
from rdrop_jax.tasks.translation import task as translation
from rdrop_jax.tasks.translation import translation_sets

HALF = "\ud83d"


def test_lone_surrogates_become_the_replacement_character():
    assert lines.clean(f"a{HALF}b") == "a\ufffdb"
    assert lines.clean(f"cut {HALF}") == "cut \ufffd"
    assert lines.clean("\ud83d\ude00") == "\U0001f600"
    assert lines.clean("é\u2028") == "é\u2028"
    assert lines.clean_value({"a": [HALF, 1, {"b": HALF}]}) == {
        "a": ["\ufffd", 1, {"b": "\ufffd"}]
    }


def test_tokenizers_take_lone_surrogates():
    found = tokenizers.train("joint", ["ein haus " + HALF, "a"], 60)
    assert found.encode([f"ein {HALF}"]) == found.encode(["ein \ufffd"])
    for learn in (subwords.train_wordpiece, subwords.train_bytes):
        learned = learn([f"fine {HALF}", "poor"], 300)
        encoded = subwords.encode(learned, [f"fine {HALF}"], [HALF], 16)
        wanted = subwords.encode(learned, ["fine \ufffd"], ["\ufffd"], 16)
        np.testing.assert_array_equal(encoded.ids, wanted.ids)


def test_tables_take_lone_surrogates(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"article": "cut \\ud83d", "b": ["\\ud83d"]}\n')
    assert [r.fields for r in tables.read(path)] == [
        {"article": "cut \ufffd", "b": ["\ufffd"]}
    ]
    assert list(parallel.texts(path, ["article"])) == [[["cut \ufffd"]]]


@pytest.mark.parametrize("unit", [b"x", b"x\n"])
def test_a_gzip_bomb_is_refused_early(tmp_path, monkeypatch, unit):
    monkeypatch.setattr(lines, "LONGEST", 2**16)
    monkeypatch.setattr(lines, "_UNPACKED", 2**15)
    monkeypatch.setattr(lines, "_RATIO", 2)
    path = tmp_path / "a.jsonl.GZ"
    path.write_bytes(gzip.compress(unit * 2**20))
    with pytest.raises(InputError, match=r"a.jsonl.GZ, line \d+: expected .*at most"):
        sum(1 for _ in lines.read(path))


@pytest.mark.parametrize("name", ["a.xml", "a.XLSX", "a.yaml.gz"])
def test_prediction_refuses_other_formats(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"text,label\nfine,good\n")
    readers = (tables.inputs, lambda p: read_texts(p, "source"))
    for read in readers:
        with pytest.raises(InputError, match=r"--input: expected .csv, .tsv, .json"):
            list(read(str(path)))
    with pytest.raises(InputError, match=r"--input: expected .txt"):
        list(read_lines(str(path), with_tables=False))


def test_prediction_knows_tables_by_capital_letters_too(tmp_path):
    (tmp_path / "a.TSV").write_text("text\nfine film\n")
    (tmp_path / "a.JSONL").write_text('{"text": "fine film"}\n')
    (tmp_path / "a.Tsv.GZ").write_bytes(gzip.compress(b"text\nfine film\n"))
    (tmp_path / "a.CSV").write_text('"text"\n"fine film"\n')
    for name in ("a.TSV", "a.JSONL", "a.Tsv.GZ", "a.CSV"):
        path = str(tmp_path / name)
        assert [r.fields for r in tables.inputs(path)] == [{"text": "fine film"}]
        assert list(read_texts(path, "text")) == ["fine film"]
        with pytest.raises(InputError, match=r"--input: expected .txt"):
            list(read_lines(path, with_tables=False))


def test_a_text_may_begin_with_a_brace(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text('{name} is poor\n{"text": "x"}\n{"text": "x"} and more\n')
    assert list(tables.inputs(str(path))) == [
        "{name} is poor",
        Row(f"{path}, line 2", {"text": "x"}),
        '{"text": "x"} and more',
    ]


def test_class_names_have_one_form():
    given = ["pos", "pos ", " ", "", None, float("nan"), "caf\u00e9", "cafe\u0301"]
    rows = [Row(f"row {i}", {"text": "a", "label": x}) for i, x in enumerate(given)]
    found = collect(rows, Columns())
    assert find_classes(found, "classes") == ("café", "pos")
    ids, there = encode_labels(found, "classes", ("café", "pos"))
    assert there.tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert ids.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    # Classes of a run that kept white space.
    assert encode_labels(found, "classes", ("café", "pos "))[0].tolist() == ids.tolist()
    with pytest.raises(InputError, match=r"data.classes: expected distinct names"):
        labels.class_ids(("pos", "pos "))


def test_integers_that_pandas_wrote_as_floats():
    rows = [
        Row(f"row {i}", {"text": "a", "label": x})
        for i, x in enumerate([1.0, 0.0, 1, None])
    ]
    found = collect(rows, Columns())
    assert find_classes(found, "classes") == ("0", "1")
    with pytest.raises(InputError, match=r"row 3: .* 1.5, a number with a fraction"):
        labels.class_name(1.5, "row 3")
    with pytest.raises(InputError, match=r"expected a number as label"):
        texts._number(10**400, "row 1")


def test_label_sets_have_the_same_form():
    rows = [
        Row(f"row {i}", {"text": "a", "label": x})
        for i, x in enumerate(["a, b ,", ["a ", "b"], [1.0], " ", []])
    ]
    found = collect(rows, Columns())
    assert find_classes(found, "multilabel") == ("1", "a", "b")
    values, there = encode_labels(found, "multilabel", ("1", "a", "b"))
    assert values.tolist()[:3] == [[0, 1, 1], [0, 1, 1], [1, 0, 0]]
    assert there.tolist() == [1, 1, 1, 0, 1]


def test_white_space_is_that_of_the_training_format(tmp_path):
    document = " two \u00a0 words\u2028here "
    for ending in ("source", "target"):
        (tmp_path / f"a.{ending}").write_text(document + "\n")
    (tmp_path / "a.tsv").write_text(f"source\ttarget\n{document}\t{document}\n")
    line = json.dumps({"source": document, "target": document})
    (tmp_path / "a.jsonl").write_text(line + "\n")
    for train in ("a", "a.tsv", "a.jsonl"):
        form = parallel.form_of(tmp_path / train)
        single = train == "a.jsonl"
        wanted = ["two words here" if single else "two \u00a0 words\u2028here"]
        for name in ("a", "a.tsv", "a.jsonl"):
            files = parallel.find(tmp_path / name, "source", "target")
            found = parallel.read(files, form=form)
            assert (found.source, found.target) == (wanted, wanted)
            if name == train:  # the texts of version 0.1
                assert parallel.read(files).source == wanted
            if len(files) == 1:
                assert list(read_texts(str(files[0]), "source", form)) == wanted
        assert form(f"{document}\n") == wanted[0]
    assert parallel.stripped("a \r\n b\n\n  c") == "a b c"


@pytest.mark.parametrize("train", ["train", "train.tsv", "train.jsonl"])
@pytest.mark.parametrize("test", ["test", "test.tsv", "test.jsonl"])
def test_a_predictor_reads_texts_as_training_does(tmp_path, train, test):
    wanted = ["two  words", "one"]
    columns = {"source": "source", "target": "target"}
    for name in (train, test):
        if name.endswith(".jsonl"):
            rows = [json.dumps({"source": x, "target": x}) for x in wanted]
            (tmp_path / name).write_text("\n".join(rows))
        elif name.endswith(".tsv"):
            rows = ["source\ttarget", *(f"{x}\t{x}" for x in wanted)]
            (tmp_path / name).write_text("\n".join(rows))
        else:
            for ending in ("en", "de"):
                (tmp_path / f"{name}.{ending}").write_text("\n".join(wanted))
    config = tiny_nmt.config(
        tmp_path,
        data__files__train=train,
        data__files__validation="",
        data__files__test=test,
        **{f"data__columns__{k}": v for k, v in columns.items()},
    )
    pairs = translation_sets.find(config.data).splits

    def translate(params, found):
        return [Answer([text], [0.0]) for text in found]

    joint = tokenizers.train("joint", wanted, 20)
    spec = translation.make_spec(config, tokenizers.Vocabularies(joint, joint))
    predictor = make_predictor(config, spec, translate, lambda name: pairs[name]())
    single = train == "train.jsonl"
    path = str(tmp_path / (test if "." in test else f"{test}.en"))
    for inputs in (predictor.rows("test"), predictor.read(path), wanted):
        answers = [answer["text"] for answer in predictor.run(None, inputs)]
        assert answers == ["two words" if single else "two  words", "one"]


@pytest.mark.parametrize("inputs", ["one text", b"bytes", {"text": "a"}, 3, None])
def test_one_input_in_place_of_a_list_is_refused(inputs):
    with pytest.raises(InputError, match=r"inputs: expected a list, found"):
        check_list(inputs)
    assert check_list(["a"]) == ["a"]


def test_classes_without_names_answer_with_their_ids():
    assert class_answer(np.array([0.25, 0.75]), ()) == {
        "label": "1",
        "id": 1,
        "probability": 0.75,
        "probabilities": {"0": 0.25, "1": 0.75},
    }
