"""A dataset reads each of its splits once."""

from rdrop_jax.data.datasets import Dataset


def test_a_split_is_read_once_and_on_demand():
    reads = []
    data = Dataset({"train": lambda: reads.append("train") or [1, 2]}, dict)
    assert reads == []
    assert data.splits["train"]() is data.splits["train"]()
    assert reads == ["train"]
