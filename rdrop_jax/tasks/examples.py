"""Per-example scores of classifiers of images or texts."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.training.mesh import shard_batch
from rdrop_jax.training.task import ExampleScores


def make_example_scores(
    forward: Forward, batches: Callable[[], Iterator[HostBatch]], mesh: Mesh
) -> ExampleScores:
    """Make a function that scores every example of a split.

    Args:
      forward: ``(params, batch, key | None) -> logits [batch, classes]``.
      batches: iterates over the split, with ``label`` [batch], and ``where`` [batch]
        False on padding.
      mesh: device mesh.

    Returns:
      ``(params, key | None) -> {"accuracy": [examples], "loss": [examples],
      "log_probs": [examples, classes]}``.
    """

    @jax.jit
    def log_probabilities(params: Params, batch: Batch, key: Key | None) -> jax.Array:
        logits = forward(params, batch, key).astype(jnp.float32)
        return jax.nn.log_softmax(logits, axis=-1)

    def scores(params: Params, key: Key | None) -> dict[str, np.ndarray]:
        log_probs, labels = [], []
        for number, batch in enumerate(batches()):
            own: Any = None if key is None else jax.random.fold_in(key, number)
            placed = shard_batch(mesh, batch, full=True)
            found = jax.device_get(log_probabilities(params, placed, own))
            log_probs.append(found[batch["where"]])
            labels.append(batch["label"][batch["where"]])
        logs, label = np.concatenate(log_probs), np.concatenate(labels)
        return {
            "accuracy": (np.argmax(logs, axis=-1) == label).astype(np.float32),
            "loss": -logs[np.arange(len(label)), label],
            "log_probs": logs,
        }

    return scores
