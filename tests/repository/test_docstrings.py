"""Docstrings of scipy as a dataset."""

import pytest

from rdrop_jax.data import docstrings
from rdrop_jax.tasks.text_classification.text_sets import _PARTS as PARTS
from rdrop_jax.tasks.text_classification.text_sets import _summaries as summaries


@pytest.fixture(scope="module")
def rows():
    return summaries()


def test_splits_share_no_line_and_are_a_function_of_the_seed(rows):
    assert rows == sorted(set(rows))
    splits = docstrings.split(rows, PARTS, 0)
    assert sorted(row for rows in splits.values() for row in rows) == rows
    texts = {name: {row.text for row in rows} for name, rows in splits.items()}
    assert not texts["train"] & (texts["test"] | texts["validation"])
    assert docstrings.split(rows, PARTS, 0) == splits
    assert docstrings.split(rows, PARTS, 1) != splits
    shares = [len(found) / len(rows) for found in splits.values()]
    for share, wanted in zip(shares, PARTS.values(), strict=True):
        assert abs(share - wanted) < 0.02


def test_majority_class_is_under_a_third(rows):
    labels = [row.subpackage for row in rows]
    most = max(labels.count(name) for name in set(labels))
    assert 0.25 < most / len(labels) < 0.33
    assert min(labels.count(name) for name in set(labels)) >= 50


def test_equal_words_stay_together():
    rows = [docstrings.Summary(f"Line {i} of {i + 1}.", "a") for i in range(50)]
    splits = docstrings.split(rows, PARTS, 0)
    assert sorted(map(len, splits.values())) == [0, 0, 50]


def test_reading_imports_nothing(tmp_path, monkeypatch):
    package = tmp_path / "mine"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\n")
    (package / "broken.py").write_text("def f(:\n")
    (package / "tests" / "test_a.py").write_text('def f():\n    """Hidden."""\n')
    (package / "a.py").write_text('class A:\n    """One.\n\n    Two.\n    """\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert list(docstrings.read("mine")) == [("a.py", "A", "One.\n\nTwo.")]
