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
from rdrop_jax.core.kernels.class_ids import all_rows
from rdrop_jax.core.kernels.fused import fused_objective
from rdrop_jax.core.kernels.linear import LinearOptions, Projection, all_chunks
from rdrop_jax.core.kernels.pairs import DIRECTIONS, PairOptions, pair_objective
from rdrop_jax.core.kernels.partition import MeshSplit, split_over
from rdrop_jax.core.kernels.softmax import SoftmaxOptions
from rdrop_jax.core.label_checks import reshape_hint
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair
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
    vocab = kernel.shape[0 if tied else 1]
    split = _split(mesh, labels.shape, vocab, chunk_size)
    softmax = SoftmaxOptions(
        float(label_smoothing), smoothing, split.tensor if split else None
    )
    objective = functools.partial(_class_ids, softmax)
    options = LinearOptions(
        objective, (tied,), chunk_size or linear_rows(vocab), fixed=(False,)
    )
    rows = hidden.reshape(len(hidden), -1, hidden.shape[-1])
    return fused_loss_and_metrics(
        functools.partial(
            fused_objective,
            functools.partial(all_chunks, options, split),
            (Projection(rows, kernel, bias),),
            labels.reshape(-1),
        ),
        position_weights(hidden.shape[1:-1], where, weight, label_weight),
        jnp.promote_types(hidden.dtype, jnp.float32),
        len(hidden),
        alpha,
        objective_scale,
        denominators,
    )


@on_any_mesh()
def large_vocab_consistency(
    first: LinearOutput,
    second: LinearOutput,
    *,
    tied: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    divergence: str = "symmetric_kl",
    stop_gradient: str = "none",
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Mean:
    r"""Compute `consistency` of two linear outputs without storing all logits.

    :math:`\sum w s / \sum w` with p of ``first`` and q of ``second``. Each side has its
    own hidden states and kernel, possibly of different widths. With
    ``divergence="forward_kl"`` and ``stop_gradient="first"`` this is exact distillation
    of a teacher, the first side. For a temperature T, divide hidden states and bias of
    both sides by T. Supports first derivatives in reverse mode only.

    Args:
      first: hidden states [..., width], kernel and bias of p.
      second: the same of q, with the same positions and vocabulary.
      tied: whether the kernels are [vocab, width]; one value, or one per side.
      where: positions that count [...]; masked positions may contain anything.
      weight: float weight per position [...].
      divergence: "symmetric_kl", "forward_kl" (KL(p || q)) or "reverse_kl".
      stop_gradient: "none"; "first" or "second", which gets no gradient; or "targets",
        see `rdrop_jax.rdrop_loss`.
      chunk_size: see `large_vocab_rdrop_loss`.
      mesh: see `large_vocab_rdrop_loss`.

    Returns:
      Mean over positions in nats, which carries gradients.

    Raises:
      ValueError: shapes that do not match or divide, or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> kernel = jnp.array([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
      >>> teacher = LinearOutput(jnp.array([[1.0, 0.0]]), kernel)
      >>> student = LinearOutput(jnp.array([[0.5]]), kernel[:1])
      >>> kl = large_vocab_consistency(
      ...     teacher, student, divergence="forward_kl", stop_gradient="first"
      ... )
      >>> f"{kl:.4f}"
      '0.0603'
    """
    ties: tuple[bool, ...] = tied if isinstance(tied, tuple) else (tied, tied)
    if len(ties) != 2:
        raise ValueError(f"tied must be one bool, or one per side: found {tied}")
    _check_outputs(first, second, ties, divergence, stop_gradient)
    shape = first.hidden.shape[:-1]
    vocab = first.kernel.shape[0 if ties[0] else 1]
    split = _split(mesh, shape, vocab, chunk_size)
    axis = split.tensor if split else None
    pair = PairOptions(divergence, stop_gradient == "targets", axis)
    projections = tuple(
        Projection(x.hidden.reshape(1, -1, x.hidden.shape[-1]), x.kernel, x.bias)
        for x in (first, second)
    )
    fixed = tuple(stop_gradient == name for name in ("first", "second"))
    one, other = projections
    same = one.kernel is other.kernel and one.bias is other.bias
    if same and ties[0] == ties[1] and not any(fixed):  # one sum of gradients
        hidden = jnp.concatenate([one.hidden, other.hidden])
        projections = (one._replace(hidden=hidden),)
        ties, fixed = ties[:1], fixed[:1]
    options = LinearOptions(
        functools.partial(pair_objective, pair),
        ties,
        chunk_size or linear_rows(vocab),
        fixed,
    )
    w = position_weights(shape, where, weight, None).kl
    rows = w.astype(jnp.promote_types(first.hidden.dtype, jnp.float32)).reshape(-1)
    none, unit = jnp.zeros_like(rows), jnp.ones((), rows.dtype)
    total, _ = fused_objective(
        functools.partial(all_chunks, options, split),
        projections,
        none.astype(int),
        Pair(none, rows),
        Pair(0 * unit, unit),
    )
    return Mean(total, jnp.sum(rows))


def _class_ids(
    options: SoftmaxOptions,
    logits: list[Array],
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, list[Array]]:
    """Compute `all_rows` of the logits of one side."""
    values, gradient = all_rows(
        logits[0],
        labels,
        weights,
        scales,
        options,
        with_gradient=with_gradient,
        local=True,
    )
    return values, [gradient]


def _split(
    mesh: Mesh | None, shape: tuple[int, ...], vocab: int, chunk_size: int | None
) -> MeshSplit | None:
    """Check the sizes of chunks and devices; return None for a single device."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1: found {chunk_size}")
    split = split_over(mesh, shape[0] if shape else 1)
    if split and split.tensor and vocab % split.mesh.shape[split.tensor]:
        raise ValueError(
            f"the vocabulary must be a multiple of {split.mesh.shape[split.tensor]} "
            f"devices: found {vocab}"
        )
    return split


def _check_outputs(
    first: LinearOutput,
    second: LinearOutput,
    tied: tuple[bool, ...],
    divergence: str,
    stop_gradient: str,
) -> None:
    for name, value, known in (
        ("divergence", divergence, tuple(DIRECTIONS)),
        ("stop_gradient", stop_gradient, ("none", "targets", "first", "second")),
    ):
        if value not in known:
            raise ValueError(f"{name}: expected one of {known}, found {value!r}")
    vocabularies = []
    for name, side, rows in (("first", first, tied[0]), ("second", second, tied[1])):
        width = side.kernel.shape[1 if rows else 0] if side.kernel.ndim == 2 else None
        if width != side.hidden.shape[-1]:
            layout = "[vocab, width]" if rows else "[width, vocab]"
            raise ValueError(
                f"{name}.kernel: expected {layout} with width {side.hidden.shape[-1]}, "
                f"found {side.kernel.shape}, tied={rows}"
            )
        vocab = side.kernel.shape[0 if rows else 1]
        if side.bias is not None and side.bias.shape != (vocab,):
            raise ValueError(
                f"{name}.bias: expected shape ({vocab},), found {side.bias.shape}"
            )
        vocabularies.append((side.hidden.shape[:-1], vocab))
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(
            "second: expected the positions and the vocabulary of first, "
            f"{vocabularies[0]}, found {vocabularies[1]}"
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
    width = kernel.shape[1 if tied else 0] if kernel.ndim == 2 else None
    if width != hidden.shape[-1]:
        layout = "[vocab, width]" if tied else "[width, vocab]"
        raise ValueError(
            f"kernel must be {layout} with width {hidden.shape[-1]} of hidden: found "
            f"{kernel.shape}, tied={tied}"
        )
    vocab = kernel.shape[0 if tied else 1]
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must be [{vocab}]: found {bias.shape}")
