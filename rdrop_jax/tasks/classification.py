"""Loss, scores per example and answers of classifiers of images or texts."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.objective import rdrop_loss
from rdrop_jax.core.passes import Batch, Forward, Key, Params
from rdrop_jax.data.batches import HostBatch
from rdrop_jax.errors import nan_outputs
from rdrop_jax.training.mesh import replicated, shard_batch
from rdrop_jax.training.task import ExampleScores


def make_loss(config: ConfigDict) -> Loss:
    """Make the R-Drop loss of class ids ``label`` [batch] or [batch, time].

    Positions whose ``labelled`` is 0 only enter the consistency term; those whose
    ``where`` is False enter none.
    """
    r = config.rdrop

    def loss(
        logits: jax.Array, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        return rdrop_loss(
            logits,
            batch["label"],
            where=batch.get("where"),
            label_weight=batch.get("labelled"),
            label_smoothing=r.label_smoothing,
            smoothing=r.smoothing,
            divergence=r.divergence,
            stop_gradient=r.stop_gradient,
            **objective,
        )

    return loss


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
      "log_probs": [examples, classes], "label": [examples]}``.
    """

    # Every process reads all outputs.
    @functools.partial(jax.jit, out_shardings=replicated(mesh))
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
        loss = -logs[np.arange(len(label)), label]
        hits = (np.argmax(logs, axis=-1) == label).astype(np.float32)
        return {
            "accuracy": np.where(np.isnan(loss), np.float32(np.nan), hits),
            "loss": loss,
            "log_probs": logs,
            "label": label,
        }

    return scores


def mean_probabilities(
    logits: Float[jax.Array, "runs *positions classes"],
) -> Float[jax.Array, "*positions classes"]:
    """Return logits whose softmax is the mean of the runs' probabilities.

    Example:
      >>> logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
      >>> jnp.exp(mean_probabilities(logits)).round(2).tolist()
      [0.699999988079071, 0.30000001192092896]
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return jax.nn.logsumexp(log_p, axis=0) - math.log(len(logits))


def mean_label_probabilities(
    logits: Float[jax.Array, "runs *positions labels"],
) -> Float[jax.Array, "*positions labels"]:
    """Return logits whose sigmoid is the mean of the runs' probabilities."""
    z = logits.astype(jnp.float32)
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=0) for x in (z, -z))
    return yes - no


def check_outputs(outputs: Float[np.ndarray, "..."]) -> None:
    """Check that no output of a model is NaN.

    Raises:
      InputError: an output is NaN.
    """
    if np.isnan(outputs).any():
        raise nan_outputs()


def class_answer(
    probabilities: Float[np.ndarray, " classes"], names: Sequence[str]
) -> dict[str, Any]:
    """Return the most probable class as a JSON-ready dict.

    Args:
      probabilities: probability of each class.
      names: class names; if empty, class ids are used instead.

    Returns:
      ``label`` (the name), ``id``, ``probability`` and ``probabilities`` by name.

    Raises:
      InputError: the probabilities are NaN.

    Example:
      >>> class_answer(np.array([0.25, 0.75]), ("bad", "good"))["label"]
      'good'
    """
    check_outputs(probabilities)
    names = tuple(names) or tuple(map(str, range(len(probabilities))))
    each = {
        name: round(float(p), 6) for name, p in zip(names, probabilities, strict=True)
    }
    best = int(np.argmax(probabilities))
    return {
        "label": names[best],
        "id": best,
        "probability": each[names[best]],
        "probabilities": each,
    }
