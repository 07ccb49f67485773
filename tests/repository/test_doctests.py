"""The examples in docstrings run."""

import doctest
import importlib

import pytest

import rdrop_jax

MODULES = sorted({getattr(rdrop_jax, n).__module__ for n in rdrop_jax.__all__})


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted > 0 or name.endswith(".terms")
