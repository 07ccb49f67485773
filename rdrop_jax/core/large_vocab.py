r"""The R-Drop objective computed from hidden states, for large vocabularies.

Logits :math:`z = h W + b` of two passes take gigabytes for vocabularies of 30,000
tokens or more. Here they exist for one chunk of positions at a time. With
:math:`g = \partial L/\partial z` computed in closed form together with the value,

.. math::
   \partial L/\partial h = g W^T, \quad
   \partial L/\partial W = \textstyle\sum h^T g, \quad
   \partial L/\partial b = \textstyle\sum g ,

each chunk takes three matrix products and nothing is recomputed.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Integer

from rdrop_jax.core import losses
from rdrop_jax.core.kernels.chunking import linear_rows
from rdrop_jax.core.kernels.fused import fused_objective
from rdrop_jax.core.kernels.linear import LinearOptions, all_chunks
from rdrop_jax.core.kernels.partition import split_over
from rdrop_jax.core.kernels.softmax import SoftmaxOptions
from rdrop_jax.core.label_checks import reshape_hint
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.objective import Denominators, fused_loss_and_metrics
from rdrop_jax.core.terms import position_weights


class LinearOutput(NamedTuple):
    """Output of a model with a large vocabulary: factors of its logits.

    With `forward_passes`, ``out_axes=LinearOutput(0, None, None)`` keeps one kernel.

    Attributes:
      hidden: hidden states [..., width].
      kernel: kernel [width, vocab], or a tied embedding table [vocab, width].
      bias: bias [vocab], or None.
    """

    hidden: Any
    kernel: Any
    bias: Any = None


@on_any_mesh()
def large_vocab_rdrop_loss(
    hidden: Float[Array, "passes *positions width"],
    kernel: Float[Array, "in_features out_features"],
    labels: Integer[Array, "*positions"],
    *,
    alpha: float | Float[Array, ""],
    bias: Float[Array, " vocab"] | None = None,
    tied: bool = False,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""Compute `rdrop_loss` of ``hidden @ kernel + bias`` without storing all logits.

    :math:`\sum w l \sum_i CE_i / \sum w l + \alpha \sum w s / \sum w`, s the half
    Jeffreys divergence (0 for one pass): Eq. 2-4 of arXiv 2106.14448. The gradients in
    hidden states, kernel and bias are computed together with the value, in chunks of
    positions. Without differentiation only the value is computed. Supports first
    derivatives in reverse mode only. Sums are in at least float32 for any input dtype.

    Args:
      hidden: hidden states [1 or 2 passes, ..., width].
      kernel: kernel [width, vocab], or [vocab, width] if ``tied``.
      labels: class ids [...].
      alpha: weight of the consistency term.
      bias: bias [vocab].
      tied: whether kernel is an embedding table [vocab, width]; it is not transposed.
      label_smoothing: epsilon in [0, 1).
      smoothing: "uniform" (epsilon / V) or "fairseq" (epsilon / (V - 1)).
      where: positions that count [...]; labels of masked positions may be anything.
      weight: float weight per position [...].
      label_weight: weight of the cross entropy only [...].
      objective_scale: "sum", or "mean" to divide by the number of passes.
      denominators: see `rdrop_loss`.
      chunk_size: positions per chunk and device; None chooses automatically.
      mesh: mesh that shards positions or vocabulary, depending on its axes: positions
        over ``data`` and ``fsdp`` along the first axis of ``labels``, the vocabulary
        over ``tensor``. The kernel gradient is summed over devices once, after the
        loop; only the ``tensor`` axis communicates within the loop.

    Returns:
      Scalar loss in nats, and the metrics ``ce`` per pass and ``kl`` as `Mean`, without
      gradients.

    Raises:
      ValueError: shapes that do not match or divide, more than two passes, or an
        unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden = jnp.array([[[1.0, 0.0]], [[0.5, 0.5]]])
      >>> kernel = jnp.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
      >>> loss, _ = large_vocab_rdrop_loss(hidden, kernel, jnp.array([0]), alpha=1.0)
      >>> round(float(loss), 4)
      1.7938
    """
    losses.check_smoothing(label_smoothing, smoothing)
    _check(hidden, kernel, bias, labels, tied)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1: found {chunk_size}")
    split = split_over(mesh, labels.shape[0] if labels.ndim else 1)
    axis = split.tensor if split else None
    vocab = kernel.shape[0 if tied else 1]
    if split and axis and vocab % split.mesh.shape[axis]:
        raise ValueError(
            f"the vocabulary must be a multiple of {split.mesh.shape[axis]} devices: "
            f"found {vocab}"
        )
    options = LinearOptions(
        SoftmaxOptions(label_smoothing, smoothing, axis),
        tied,
        chunk_size or linear_rows(vocab),
    )
    rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
    return fused_loss_and_metrics(
        functools.partial(
            fused_objective,
            functools.partial(all_chunks, options, split),
            (rows, kernel, bias),
            labels.reshape(-1),
        ),
        position_weights(hidden.shape[1:-1], where, weight, label_weight),
        jnp.promote_types(hidden.dtype, jnp.float32),
        len(hidden),
        alpha,
        objective_scale,
        denominators,
    )


def _check(
    hidden: Array, kernel: Array, bias: Array | None, labels: Array, tied: bool
) -> None:
    hint = reshape_hint("hidden", hidden.shape, "labels", labels.shape)
    if hidden.ndim < 2 or not 1 <= len(hidden) <= 2:
        raise ValueError(
            f"hidden must be [1 or 2 passes, ..., width]: found {hidden.shape}.{hint}"
        )
    if labels.shape != hidden.shape[1:-1] or not jnp.issubdtype(
        labels.dtype, jnp.integer
    ):
        raise ValueError(
            f"labels must be class ids {hidden.shape[1:-1]}: found {labels.dtype} "
            f"{labels.shape}.{hint}"
        )
    width, vocab = kernel.shape[::-1] if tied else kernel.shape
    if width != hidden.shape[-1]:
        layout = "[vocab, width]" if tied else "[width, vocab]"
        raise ValueError(
            f"kernel must be {layout} with width {hidden.shape[-1]} of hidden: found "
            f"{kernel.shape}, tied={tied}"
        )
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must be [{vocab}]: found {bias.shape}")
