"""Docstrings of an installed package, parsed with `ast` without importing it."""

import ast
import hashlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rdrop_jax.errors import InputError


class Docstring(NamedTuple):
    """Docstring of a function or class.

    Attributes:
      file: path within the package, with forward slashes.
      name: name of the function or class.
      text: the docstring, without indentation.
    """

    file: str
    name: str
    text: str


class Summary(NamedTuple):
    """First paragraph of a docstring, and its subpackage."""

    text: str
    subpackage: str


def root(package: str) -> Path:
    """Return the folder of an installed package.

    Raises:
      InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"data.name: expected an installed package {package}, which contains the "
            f"texts, found none. Run `pip install {package}`."
        )
    return Path(spec.submodule_search_locations[0])


def read(package: str) -> Iterator[Docstring]:
    """Read the docstrings of all functions and classes outside tests.

    Args:
      package: name of an installed package.

    Yields:
      Docstrings, sorted by file.
    """
    base = root(package)
    for path in sorted(base.rglob("*.py")):
        parts = path.relative_to(base).parts
        if "tests" in parts:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escape sequences
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            if text := ast.get_docstring(node):
                yield Docstring("/".join(parts), node.name, text)


def summaries(package: str, *, shortest: int, rarest: int) -> list[Summary]:
    """Read the unique first paragraphs of docstrings with their subpackages.

    Args:
      package: name of an installed package.
      shortest: minimum number of characters in a summary.
      rarest: minimum number of summaries in a subpackage; smaller ones are omitted.

    Returns:
      Sorted summaries, without those of more than one subpackage.
    """
    places: dict[str, set[str]] = {}
    for doc in read(package):
        text = " ".join(doc.text.split("\n\n")[0].split())
        subpackage = doc.file.split("/")[0]
        if len(text) >= shortest and "/" in doc.file and subpackage[0] != "_":
            places.setdefault(text, set()).add(subpackage)
    alone = [(text, found.pop()) for text, found in places.items() if len(found) == 1]
    sizes = Counter(subpackage for _, subpackage in alone)
    return sorted(Summary(t, s) for t, s in alone if sizes[s] >= rarest)


def split(
    rows: list[Summary], parts: dict[str, float], split_seed: int
) -> dict[str, list[Summary]]:
    """Split summaries; those that differ only in digits and symbols stay together.

    Args:
      rows: sorted summaries.
      parts: fraction of the groups of equal summaries by split; the sum is 1.
      split_seed: seed of the split assignment.

    Returns:
      Rows by split.
    """
    groups: dict[str, list[Summary]] = {}
    for row in rows:
        words = " ".join(re.findall("[a-z]+", row.text.lower()))
        groups.setdefault(words, []).append(row)
    names = sorted(groups)
    order = np.random.default_rng(split_seed).permutation(len(names))
    ends = np.round(np.cumsum(list(parts.values())) * len(names)).astype(int)
    parted = np.split(order, ends[:-1])
    return {
        split: [row for i in part for row in groups[names[i]]]
        for split, part in zip(parts, parted, strict=True)
    }


def sha256(rows: list[Summary]) -> str:
    """Return the checksum of rows, which depend on the package's version."""
    text = "\n".join("\t".join(row) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()
