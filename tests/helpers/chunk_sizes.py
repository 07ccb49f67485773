"""Other chunk sizes for one test."""

from rdrop_jax.core.kernels import chunking


def set_sizes(monkeypatch, **changed):
    """Replace entries of the chunk sizes on the CPU backend."""
    new = chunking.SIZES["cpu"]._replace(**changed)
    monkeypatch.setitem(chunking.SIZES, "cpu", new)
