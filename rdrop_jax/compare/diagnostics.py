"""Diagnostics of a finished run, in addition to its scores."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from rdrop_jax.cli.run import open_run
from rdrop_jax.files.disk import explained, replaced, write_json

SUB_MODELS = 8


def diagnose(workdir: Path) -> dict[str, Any]:
    """Score the best checkpoint on the training data and on each test example.

    A task that generates text does not score the training data, which would be slow.
    Writes ``test_examples.npz`` (scores per example) if the task provides them, and
    last ``diagnostics.json``, which marks the diagnostics as complete.

    Args:
      workdir: folder of a finished run.

    Returns:
      ``{"train": scores}``, unless the task generates text. If the task returns class
      probabilities, also ``"agreement"`` and ``"sub_model_kl"`` of
      `compare_sub_models`.
    """
    run = open_run(workdir)
    found: dict[str, Any] = {}
    if "train" in run.task.evaluators and not run.task.generates:
        found["train"] = run.task.evaluators["train"](run.mesh)(run.params)
    if "test" in run.task.examples:
        score = run.task.examples["test"](run.mesh)
        examples = score(run.params, None)
        if examples.pop("log_probs", None) is not None:
            keys = jax.random.split(jax.random.key(0), SUB_MODELS)
            samples = np.stack([score(run.params, key)["log_probs"] for key in keys])
            agreement, kl = compare_sub_models(samples)
            found |= {"agreement": agreement, "sub_model_kl": kl}
        with explained(workdir), replaced(workdir / "test_examples.npz") as file:
            np.savez(file, allow_pickle=False, **examples)
    write_json(workdir / "diagnostics.json", found)
    return found


def compare_sub_models(
    log_probs: Float[np.ndarray, "models examples classes"],
) -> tuple[float, float]:
    """Measure the agreement of sub-models sampled by dropout at test time.

    Args:
      log_probs: log probabilities of several sub-models.

    Returns:
      Over pairs of sub-models and examples: the share with the same most likely class,
      and the mean of ``(KL(p || q) + KL(q || p)) / 2`` in nats.
    """
    same, kl = [], []
    for a, b in itertools.combinations(log_probs.astype(np.float64), 2):
        same.append(np.mean(np.argmax(a, axis=-1) == np.argmax(b, axis=-1)))
        p, q = np.exp(a), np.exp(b)
        with np.errstate(invalid="ignore"):  # a class with probability 0 in both
            terms = np.where((p == 0) & (q == 0), 0.0, (p - q) * (a - b))
        kl.append(0.5 * np.mean(np.sum(terms, axis=-1)))
    return float(np.mean(same)), float(np.mean(kl))
