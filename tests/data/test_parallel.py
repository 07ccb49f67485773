"""Sentence pairs from files: every form, and every way to be wrong."""

import gzip
import json

import pytest

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import parallel

PAIRS = [("ein Haus", "a house"), ("ja \u2028 nein", "yes no"), ("drei", "three")]


def write(tmp_path, form):
    sources, targets = zip(*PAIRS, strict=True)
    if form in ("text", "gz"):
        for language, side in (("de", sources), ("en", targets)):
            content = "".join(f" {line}\r\n" for line in side).encode()
            name = tmp_path / f"train.{language}"
            if form == "gz":
                name.with_name(f"{name.name}.gz").write_bytes(gzip.compress(content))
            else:
                name.write_bytes(b"\xef\xbb\xbf" + content)
        return tmp_path / "train", ("source", "target")
    if form == "jsonl":
        rows = [{"id": 1, "German": s, "English": t} for s, t in PAIRS]
        text = "\n".join(json.dumps(row) for row in rows)
        columns = ("German", "English")
    elif form == "tsv":
        text = "\n".join(["id\tEnglish\tGerman", *(f"1\t{t}\t{s}" for s, t in PAIRS)])
        columns = ("German", "English")
    else:
        text = "\n".join(f"{s}\t{t}" for s, t in PAIRS)
        columns = ("0", "1")
    path = tmp_path / f"train.{form.removesuffix('0')}"
    path.write_text(text)
    return path, columns


@pytest.mark.parametrize("form", ["text", "gz", "jsonl", "tsv", "tsv0"])
def test_every_form_gives_the_same_pairs(tmp_path, form):
    path, columns = write(tmp_path, form)
    found = parallel.read(parallel.find(path, "de", "en"), columns)
    pairs = list(zip(found.source, found.target, strict=True))
    if form == "jsonl":  # its texts may contain newlines, so spaces are single
        assert pairs[1] == ("ja nein", "yes no")
    else:
        assert pairs == PAIRS


def message(tmp_path, files, columns=("source", "target"), name="train"):
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as error:
        parallel.read(parallel.find(tmp_path / name, "de", "en"), columns)
    return str(error.value).replace(f"{tmp_path}/", "")


def test_bad_text_names_the_line(tmp_path):
    found = message(tmp_path, {"train.de": b"a\nb\nc\n", "train.en": b"a\n"})
    assert found == (
        "train.de, train.en: expected as many lines in both, found 3 and 1: line 2 of "
        "train.de has no partner in train.en"
    )
    assert message(tmp_path, {"train.en": b"a\nb\nc\xff\n"}) == (
        "train.en, line 3: expected UTF-8, found byte 0xff at position 1. "
        "Save the file as UTF-8"
    )
    (tmp_path / "train.en").unlink()
    assert message(tmp_path, {}).startswith("data: expected train.en or train.en.gz")
    found = message(tmp_path, {"train.en.gz": gzip.compress(b"a\nb\nc\n" * 99)[:-9]})
    assert found.startswith("train.en.gz: cannot be read: ")


def test_names_of_folders_say_nothing_of_files(tmp_path):
    path = tmp_path / "all.tsv" / "t.jsonl"
    path.parent.mkdir()
    path.write_text('{"source": "a\\nb", "target": "c"}\n')
    assert parallel.read((path,)).source == ["a b"]


def test_bad_tables_name_the_line(tmp_path):
    lines = b'{"source": "a", "target": "b"}\n{"source": "a"}\n'
    assert message(tmp_path, {"t.jsonl": lines}, name="t.jsonl") == (
        "t.jsonl, line 2: expected a text under data.columns 'target', found source"
    )
    lines = b'{"source": ["a", 3], "target": "b"}\n'
    assert message(tmp_path, {"t.jsonl": lines}, name="t.jsonl") == (
        "t.jsonl, line 1: expected a text under data.columns 'source', found ['a', 3]"
    )
    found = message(tmp_path, {"t.jsonl": b"[\n"}, name="t.jsonl")
    assert found == "t.jsonl, line 1: expected JSON, found '['"
    found = message(tmp_path, {"t.tsv": b"source\ttarget\na\n"}, name="t.tsv")
    assert found == "t.tsv, line 2: expected 2 columns, as in the first line, found 1"
    found = message(tmp_path, {"t.tsv": b"a\tb\nc\td\n"}, name="t.tsv")
    assert found == (
        "t.tsv, line 2: expected a text under data.columns 'source', found a, b; for a "
        "file without a header give numbers, from 0"
    )
    found = message(tmp_path, {"t.tsv": b"a\tb\nc\n"}, ("1", "0"), name="t.tsv")
    assert found == "t.tsv, line 2: expected a text under data.columns '1', found 0"
    found = message(tmp_path, {"t.tsv": b""}, name="t.tsv")
    assert found == "t.tsv: expected pairs, found none"


def test_pairs_with_an_empty_side_are_dropped_and_counted():
    pairs = parallel.Pairs(["a", "", "c", "d"], ["A", "B", "", "D"], "mine")
    found = parallel.without_empty(pairs)
    assert (found.source, found.target) == (["a", "d"], ["A", "D"])
    assert found.notes == ("mine: 2 pairs with an empty source or target dropped",)
    assert parallel.without_empty(found) is found


def test_nothing_that_is_held_out_stays_in_training():
    names = [str(i % 50) for i in range(200)]
    pairs = parallel.Pairs(names, [f"t{i}" for i in range(200)], "mine")
    found = parallel.hold_out(pairs, {"validation": 12.0, "test": 20.0}, 0)
    assert (len(found["validation"]), len(found["test"])) == (12, 20)
    held = {*found["validation"].source, *found["test"].source}
    assert found["train"].source
    assert not held & set(found["train"].source)
    again = parallel.hold_out(pairs, {"validation": 12.0, "test": 20.0}, 0)
    assert again == found
    other = parallel.hold_out(pairs, {"validation": 12.0, "test": 20.0}, 1)
    assert other["test"] != found["test"]


def test_no_reference_that_was_held_out_is_trained_on():
    references = [[f"t{i}", f"other {i // 2}"] for i in range(40)]
    firsts = [each[0] for each in references]
    pairs = parallel.Pairs(
        [f"s{i}" for i in range(40)], firsts, "pairs", references=references
    )
    found = parallel.hold_out(pairs, {"validation": 4.0}, 0)
    seen, held_out = (
        {text for each in found[name].targets for text in each}
        for name in ("train", "validation")
    )
    assert len(found["train"]) < 36
    assert not seen & held_out


def test_only_tables_have_parts(tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"part-0.{language}").write_text("a\n")
    with pytest.raises(InputError, match=r"^data: expected .*/part-\*\.de or part-"):
        parallel.find(tmp_path / "part-*", "de", "en")
