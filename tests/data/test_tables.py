"""Rows of files, and what prediction reads."""

import gzip

import pytest

from rdrop_jax.data import tables
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.text_classification.evaluation import as_row
from rdrop_jax.tasks.text_classification.text_sets import Columns


def test_lines_to_predict_on(tmp_path):
    path = tmp_path / "in.txt.gz"
    path.write_bytes(gzip.compress(b'one\ntwo\tmore\tstill\n{"text": "three"}\n'))
    assert list(tables.inputs(str(path))) == [
        "one",
        ("two", "more\tstill"),
        Row(f"{path}, line 3", {"text": "three"}),
    ]
    with pytest.raises(InputError, match="no file 'nowhere"):
        list(tables.inputs("nowhere.txt"))


def test_a_second_text_is_not_dropped_where_there_is_one():
    with pytest.raises(InputError, match="line 1: expected 1 text, text, found 2"):
        as_row(("a", "b"), Columns(), "line 1")
    assert as_row("a", Columns(text="review"), "line 1").fields == {"review": "a"}
