"""One name for one thing: classes, modules and words that no identifier uses."""

import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "rdrop_jax"
# Modules with the same role in each task, and `rdrop_jax.train` etc., which call the
# module of the program in `cli`.
ROLES = {"__init__", "abstract", "hub", "predict", "scores", "task"}
DOORS = {"compile", "evaluate", "export", "flags", "predict", "prepare", "train"}
WORDS = {"agreed", "begun", "check", "claim", "flaw", "held", "many", "put", "say"}
WORDS |= {"seal", "sides"}
# Modules that write datasets from their published archives.
RECIPES = {"corpora", "imagenet", "prepared_text"}


def parsed():
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.stem not in RECIPES:
            yield path, ast.parse(path.read_text())


def repeated(names):
    return [name for name, count in Counter(names).items() if count > 1]


def test_modules_have_distinct_names():
    inner = [path.stem for path, _ in parsed() if path.parent != PACKAGE]
    assert not {*repeated(inner)} - ROLES
    assert {path.stem for path in PACKAGE.glob("*.py")} & {*inner} <= DOORS | ROLES


def test_classes_have_distinct_names():
    nodes = [node for _, tree in parsed() for node in ast.walk(tree)]
    assert not repeated(n.name for n in nodes if isinstance(n, ast.ClassDef))


def test_names_are_the_words_of_the_field():
    for path, tree in parsed():
        for node in ast.walk(tree):
            name = getattr(node, "name", None) or getattr(node, "id", None)
            assert name not in WORDS, f"{path}:{node.lineno}: {name}"
