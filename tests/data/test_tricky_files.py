"""Tricky files of every format: the rows, or an error that names file and line."""

import csv
import gzip
import io
import json
import random
import re

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from rdrop_jax import flags, tasks
from rdrop_jax.data import tables
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.files import lines
from rdrop_jax.tasks.image_classification import decode
from rdrop_jax.tasks.seq2seq import pair_sets, parallel
from rdrop_jax.tasks.seq2seq.translator import read_texts
from rdrop_jax.tasks.text_classification import text_files
from rdrop_jax.tasks.text_classification.texts import Columns, collect

BOM = "\ufeff"
ODD = "a\u2028b\u0085c\x0cd\x1ce"  # str.splitlines breaks it; newlines alone do here
# Rows of (text, label), or a part of the error. "|" stands for the delimiter.
DELIMITED = {
    "numbers and NA are texts": ("NA|null\n007|1e3\n1.50|True\n", None),
    "empty fields": ("|x\na|\n|\n", [("", "x"), ("a", ""), ("", "")]),
    "white space": ("  a | x \n", [("  a ", " x ")]),
    "other line breaks": (f"{ODD}|x\n", [(ODD, "x")]),
    "NUL": ("a\0b|x\nc|y\n", [("a\0b", "x"), ("c", "y")]),
    "CRLF": ("a|x\r\nb|y\r\n", [("a", "x"), ("b", "y")]),
    "no last newline": ("a|x", [("a", "x")]),
    "the same row twice": ("a|x\na|x\n", [("a", "x"), ("a", "x")]),
    "quotes inside": ('5" disk|x\nsay "hi"|y\n', [('5" disk', "x"), ('say "hi"', "y")]),
    "backslashes": ("a\\nb\\|x\n", [("a\\nb\\", "x")]),
    "200 kB": ("a" * 200_000 + "|x\n", [("a" * 200_000, "x")]),
    "a short row": ("a|x\nb\n", "line 3: expected 2 columns, .* found 1"),
    "a long row": ("a|x|1\nb|y|2\n", "line 2: expected 2 columns, .* found 3"),
    "Latin-1": (
        "café|x\n".encode("latin-1"),
        "line 2: expected UTF-8, found byte 0xe9",
    ),
}
QUOTED = {
    "delimiter": ('"a|b"|x\n', [("a|b", "x")]),
    "doubled quotes": ('"say ""hi"""|x\n', [('say "hi"', "x")]),
    "newlines": ('"a\nb"|x\nc|"\r\n"\r\n', [("a\nb", "x"), ("c", "\r\n")]),
    "blank lines": ("\na|x\n\n", [("a", "x")]),
    "unclosed": ('a|x\n"b|y\nc|z\n', "line 3: .*unexpected end of data.*double"),
    "unclosed, later a quote": ('"a|x\nb|y\n"c"|z\n', "line 2: .*expected after"),
    "text after quotes": ('"a" b|x\n', "line 2: .*expected after"),
    "CR": ("a\rb|x\n", "line 2: .*new-line character"),
    "line of a row after newlines": ('"a\n\nb"|x\nc\n', "line 5: expected 2 columns"),
}
LITERAL = {
    "quotes": ('"a ""b"|"\n', [('"a ""b"', '"')]),
    "CR": ("a\rb|x\n", [("a\rb", "x")]),
    "a quoted delimiter": ('"a|b"|x\n', "line 2: .* found 3. Set data.quoting=csv"),
    "a blank line": ("a|x\n\n", "line 3: expected 2 columns, .* found 1"),
}


def rows(path, **options):
    found = list(tables.read(path, **options))
    return [(row.fields["text"], row.fields["label"]) for row in found]


def check(path, wanted, read=rows, **options):
    if not isinstance(wanted, str):
        assert read(path, **options) == wanted
        return
    with pytest.raises(InputError, match=f"(?s){re.escape(path.name)}.*{wanted}"):
        read(path, **options)


@pytest.mark.parametrize("bom", ["", BOM])
@pytest.mark.parametrize(
    ("suffix", "quoting", "cases"),
    [
        (".csv", "none", DELIMITED | QUOTED),
        (".tsv", "csv", DELIMITED | QUOTED),
        (".tsv", "none", DELIMITED | LITERAL),
    ],
)
def test_delimited(tmp_path, suffix, quoting, cases, bom):
    delimiter = "," if suffix == ".csv" else "\t"
    for name, (content, wanted) in cases.items():
        if wanted is None:
            wanted = [tuple(line.split("|")) for line in content.splitlines()]
        raw = content.encode() if isinstance(content, str) else content
        raw = f"{bom}text|label\n".encode() + raw
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(raw.replace(b"|", delimiter.encode()))
        if not isinstance(wanted, str):
            wanted = [tuple(x.replace("|", delimiter) for x in row) for row in wanted]
        check(path, wanted, quoting=quoting)


def test_rows_of_the_standard_library_come_back(tmp_path):
    draw = random.Random(0)
    parts = [
        '"',
        '""',
        "\n",
        "\r\n",
        "\r",
        ",",
        "\t",
        "two\0",
        "\u2028",
        " ",
        "é",
        "NA",
    ]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        texts = ["".join(draw.choices(parts, k=draw.randrange(6))) for _ in range(400)]
        wanted = list(zip(texts[::2], texts[1::2], strict=True))
        path = tmp_path / f"a{suffix}.gz"
        with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [("text", "label"), *wanted]
            )
        assert rows(path, quoting="csv") == wanted


def test_delimited_without_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('"a,b",c\n1,2,3\n')
    found = [row.fields for row in tables.read(path, header=False)]
    assert found == [{"0": "a,b", "1": "c"}, {"0": "1", "1": "2", "2": "3"}]
    path.write_text('"a,b",c\n')
    assert parallel.read((path,), ("1", "0")).target == ["a,b"]


HALF = '"cut \\ud83d"'
OBJECT = '{"text": "a", "label": "x"}'
JSON = {
    "other line breaks": (json.dumps({"text": ODD, "label": "x"}), [(ODD, "x")]),
    "raw": (f'{{"text": "{ODD[:5]}", "label": "x"}}', [(ODD[:5], "x")]),
    "NUL": ('{"text": "a\\u0000b", "label": "x"}', [("a\0b", "x")]),
    "half a character": (f'{{"text": {HALF}, "label": 1}}', [("cut \ufffd", 1)]),
    "dates are texts": ('{"text": "2020-01-01", "label": 1}', [("2020-01-01", 1)]),
    "large integers": (f'{{"text": "", "label": {9**30}}}', [("", 9**30)]),
    "types": ('{"text": ["a", null], "label": true}', [(["a", None], True)]),
    "Latin-1": ('{"text": "é"}'.encode("latin-1"), "expected UTF-8, found byte 0xe9"),
    "duplicate key": ('{"label": 1, "label": 2}', "expected every column once"),
    "deep": ("[" * 100_000, "nested less deeply"),
    "deep object": ('{"a":' * 100_000, "nested less deeply"),
    "long integer": ('{"a": ' + "9" * 5000 + "}", "at most 4300 digits"),
    "truncated": ('{"a"', "expected JSON, found '"),
    "no object": ("3", "expected a JSON object, found 3"),
}


@pytest.mark.parametrize("name", JSON)
def test_json(tmp_path, name):
    content, wanted = JSON[name]
    raw = content if isinstance(content, bytes) else content.encode()
    first = OBJECT.encode()
    path = tmp_path / "a.jsonl"
    path.write_bytes(BOM.encode() + first + b"\r\n\r\n" + raw)
    place = f"line 3: .*{wanted}" if isinstance(wanted, str) else None
    check(path, place or [("a", "x"), *wanted])
    (tmp_path / "a.json").write_bytes(path.read_bytes())
    check(tmp_path / "a.json", place or [("a", "x"), *wanted])
    path = tmp_path / "array.json.gz"
    path.write_bytes(gzip.compress(b"[\n" + first + b",\n" + raw + b"]\n"))
    check(path, wanted if place else [("a", "x"), *wanted])


def test_nested_columns_have_dotted_names():
    row = Row("row 0", {"x": {"en": "a", "b.c": "d"}, "y.z": "e"})
    assert [row.get(name) for name in ("x.en", "x.b.c", "y.z")] == ["a", "d", "e"]
    assert "x.de" not in row
    assert "x.en.a" not in row
    assert collect([row], Columns("x.en", "", "y.z")).labels == ["e"]
    assert parallel.collect([row], ("x.en", "y.z"), "rows").target == ["e"]
    with pytest.raises(
        InputError, match=r"row 0: expected a column 'x.de'.*found x, y"
    ):
        collect([row], Columns("x.de", "", "y.z"))


RAW = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
NOT_UTF8 = pyarrow.Array.from_buffers(pyarrow.string(), 2, RAW.buffers())
TEXTS = pyarrow.array([f"{ODD}\0\n", None])
PARQUET = {
    "texts": (TEXTS, [(f"{ODD}\0\n", "x"), (None, "y")]),
    "dictionary": (TEXTS.dictionary_encode(), [(f"{ODD}\0\n", "x"), (None, "y")]),
    "views": (TEXTS.cast(pyarrow.string_view()), [(f"{ODD}\0\n", "x"), (None, "y")]),
    "lists": (pyarrow.array([["a"], []]), [(["a"], "x"), ([], "y")]),
    "structs": (pyarrow.array([{"a": 1}, None]), [({"a": 1}, "x"), (None, "y")]),
    "not UTF-8": (NOT_UTF8, "row 0 .*expected UTF-8"),
}


@pytest.mark.parametrize("name", PARQUET)
def test_parquet(tmp_path, name):
    column, wanted = PARQUET[name]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": column, "label": ["x", "y"]}), path)
    check(path, wanted)


def test_damaged_parquet_and_columns_of_one_name(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pyarrow.array(["x"])
    table = pyarrow.Table.from_arrays([texts, texts], names=["text", "text"])
    parquet.write_table(table, path)
    check(path, "expected every column once, found 'text'")
    path.write_bytes(path.read_bytes()[:-9])
    check(path, "cannot be read as Parquet")
    path = tmp_path / "a.csv"
    path.write_text("text,label,label\na,x,y\n")
    check(path, "line 1: expected every column once, found 'label'")


def shard(folder, number, of, text):
    path = folder / f"train-{number:05}-of-{of:05}.parquet"
    parquet.write_table(pyarrow.table({"text": [text], "label": ["x"]}), path)
    return path


def test_shards_are_one_table(tmp_path):
    paths = [shard(tmp_path, i, 3, "abc"[i]) for i in range(3)]
    named = tmp_path / "train-*.parquet"
    assert rows(named) == [("a", "x"), ("b", "x"), ("c", "x")]
    config = flags.load(
        "configs/glue.py:files",
        {"data.dir": str(tmp_path), "data.files.train": named.name},
    )
    found = text_files.find(config.data)
    assert list(found.provenance()) == [path.name for path in paths]
    assert found.splits["train"]().places[2] == f"{paths[2]}, row 0"
    pairs = parallel.read(parallel.find(named, "en", "de"), ("text", "label"))
    assert pairs.source == ["a", "b", "c"]
    shard(tmp_path, 0, 1, "stale")
    check(named, "expected each of the 3 shards once, found")


def test_a_missing_shard_is_refused(tmp_path):
    for number in (0, 2):
        shard(tmp_path, number, 3, "a")
    check(tmp_path / "train-*.parquet", "expected each of the 3 shards once, found")


def test_the_quoting_of_a_config_reaches_its_readers(tmp_path):
    (tmp_path / "t.tsv").write_text('text\tlabel\n"a\tb"\tx\n"c\td"\ty\n')
    fields = {"data.dir": str(tmp_path), "data.files.train": "t.tsv"}
    fields["data.quoting"] = "csv"
    data = flags.load("configs/glue.py:files", fields).data
    assert list(text_files.find(data).splits["train"]().first) == ["a\tb", "c\td"]
    fields |= {"data.columns.source": "text", "data.columns.target": "label"}
    fields |= {"data.files.validation": "t.tsv", "data.files.test": "t.tsv"}
    data = flags.load("configs/nmt.py:files", fields).data
    pairs = pair_sets.files(data, ("en", "de")).splits["validation"]()
    assert pairs.source == ["a\tb", "c\td"]
    path = str(tmp_path / "t.tsv")
    assert [row.get("text") for row in tables.inputs(path, "csv")] == ["a\tb", "c\td"]
    assert list(read_texts(path, "text", None, "csv")) == ["a\tb", "c\td"]


@pytest.mark.parametrize("config", ["glue", "nmt", "summarization"])
def test_unknown_quoting_is_refused(tmp_path, config):
    loaded = flags.load(f"configs/{config}.py", {"data.quoting": "minimal"})
    with pytest.raises(InputError, match=r"data.quoting: expected one of none, csv, f"):
        tasks.build(loaded)


TEXT = {
    "only newlines separate lines": (f"{BOM}{ODD}\0\r\ne\rf\n", [f"{ODD}\0", "e\rf"]),
    "blank lines": ("a\n\n b ", ["a", "", " b "]),
    "empty": ("", []),
    "UTF-16": ("a\n".encode("utf-16"), "line 1: .*found UTF-16"),
    "UTF-16 without a mark": ("abc\n".encode("utf-16-le"), "line 1: .*found UTF-16"),
    "CR": (b"a\rb\rc\r", "line 1: .*CR alone"),
    "Latin-1": (b"a\n\xff\n", "line 2: .*expected UTF-8, found byte 0xff"),
}


@pytest.mark.parametrize("name", TEXT)
def test_lines_of_text(tmp_path, name):
    content, wanted = TEXT[name]
    path = tmp_path / "a.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check(path, wanted, lambda path: list(lines.read(path)))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
PLAIN = Image.fromarray(RGB)
DEEP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
BLACK = Image.new("RGB", PLAIN.size)
ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation
IMAGES = {
    "CMYK": (encoded(PLAIN.convert("CMYK"), "TIFF"), RGB),
    "16 bits": (encoded(Image.fromarray(DEEP)), np.stack([DEEP >> 8] * 3, -1)),
    "palette": (
        encoded(PLAIN.quantize(48, dither=0), transparency=0),
        PLAIN.quantize(48, dither=0).convert("RGB"),
    ),
    "transparency": (
        encoded(Image.fromarray(np.dstack([RGB, np.zeros((6, 8), np.uint8)]))),
        RGB,
    ),
    "animated": (encoded(PLAIN, save_all=True, append_images=[BLACK]), RGB),
    "EXIF rotation": (encoded(PLAIN, exif=ROTATED), RGB),
    "truncated": (encoded(PLAIN)[:100], "cannot be read"),
    "32 bits": (
        encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        "8 or 16 bits per channel, found 32",
    ),
    "text": (b"hello", "cannot identify"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(tmp_path, name):
    content, wanted = IMAGES[name]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    if isinstance(wanted, str):
        with pytest.raises(InputError, match=wanted):
            decode.decode(path, 3)
    else:
        np.testing.assert_array_equal(np.asarray(decode.decode(path, 3)), wanted)
