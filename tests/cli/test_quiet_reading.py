"""A workdir is opened without warnings of the checkpoint library."""

import logging

import jax.numpy as jnp

from rdrop_jax.training.checkpoint import Checkpoints, Progress


def test_reading_checkpoints_logs_nothing(tmp_path, caplog):
    writer = Checkpoints(tmp_path)
    writer.save(1, {"params": {"w": jnp.ones(2)}}, Progress())
    writer.close()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="absl"):
        reader = Checkpoints(tmp_path, read_only=True)
        assert reader.pick("last") == 1
        reader.close()
    assert caplog.records == []
    assert logging.getLogger("absl").filters == []
