"""R-Drop over a vocabulary, with an implementation chosen by its size."""

from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rdrop_jax.core.accumulate import Loss
from rdrop_jax.core.alpha import resolve_num_passes
from rdrop_jax.core.consistency import consistency
from rdrop_jax.core.large_vocab import (
    LinearOutput,
    large_vocab_consistency,
    large_vocab_rdrop_loss,
)
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.objective import rdrop_loss
from rdrop_jax.core.passes import Batch
from rdrop_jax.errors import InputError
from rdrop_jax.models.outputs import logits
from rdrop_jax.tasks.field_checks import SIMCUT

# Vocabulary size from which the full logits are never materialized. This takes 0.8 to
# 1.05 times the time of the plain loss and 20 to 50 % of its scratch memory, but 1.1
# times the time for 512 tokens (2 x 1,024 positions, widths 128 and 512, on a CPU).
LARGE_VOCAB = 1000


def make_loss(config: ConfigDict, vocab_size: int, mesh: Mesh | None = None) -> Loss:
    r"""Make the loss of a batch with ``labels`` and ``where``.

    With ``rdrop.views="simcut"`` it is :math:`CE(p, y) + \alpha\, KL(p \| q)` for
    predictions p of the first pass, whose inputs are complete, and q of the second
    (Gao et al., 2022, NAACL 2022.naacl-main.289). Only the first pass learns from
    labels, so the objective scales "sum" and "mean" are equal.

    Args:
      config: config of the run.
      vocab_size: number of tokens.
      mesh: mesh of several devices; None for one device.

    Returns:
      ``(outputs, batch, **objective) -> (scalar, metrics)``; outputs are logits
      [passes, ..., vocab], or `LinearOutput`s with a tied kernel [vocab, width].

    Raises:
      InputError: the vocabulary size is not divisible by the tensor axis.
    """
    r = config.rdrop
    simcut = r.views == SIMCUT
    default = (r.divergence, r.stop_gradient) == ("symmetric_kl", "none")
    large = (
        vocab_size >= LARGE_VOCAB
        and (default or simcut)
        and resolve_num_passes(r.alpha, r.num_passes) <= 2
    )
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if large and vocab_size % tensor:
        raise InputError(
            f"mesh.tensor: expected a divisor of the {vocab_size} tokens of the "
            f"vocabulary, found {tensor}"
        )

    def loss(
        outputs: Any, batch: Batch, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        objective["where"] = batch["where"]
        objective["label_smoothing"] = r.label_smoothing
        objective["smoothing"] = r.smoothing
        linear, labels = isinstance(outputs, LinearOutput), batch["labels"]
        if large and linear:
            hidden, kernel, bias = outputs
            return large_vocab_rdrop_loss(
                hidden, kernel, labels, bias=bias, tied=True, mesh=mesh, **objective
            )
        return rdrop_loss(
            logits(outputs) if linear else outputs,
            labels,
            divergence=r.divergence,
            stop_gradient=r.stop_gradient,
            **objective,
        )

    def simcut_loss(
        outputs: Any, batch: Batch, *, alpha: Any, **objective: Any
    ) -> tuple[jax.Array, dict[str, Mean]]:
        linear = isinstance(outputs, LinearOutput)
        passes = outputs.hidden if linear else outputs
        first = outputs._replace(hidden=passes[:1]) if linear else passes[:1]
        total, metrics = loss(first, batch, alpha=0.0, **objective)
        if len(passes) == 1:
            return total, metrics
        options = {
            "where": batch["where"],
            "divergence": "forward_kl",
            "stop_gradient": r.stop_gradient,
        }
        if large and linear:
            both = (outputs._replace(hidden=hidden) for hidden in passes)
            kl = large_vocab_consistency(*both, tied=True, mesh=mesh, **options)
        else:
            kl = consistency(logits(outputs) if linear else outputs, **options)
        given = objective.get("denominators")
        weight = kl.weight if given is None else given[1]
        total = total + alpha * Mean(kl.total, weight).compute()
        return total, metrics | {"kl": jax.lax.stop_gradient(kl)}

    return simcut_loss if simcut else loss
