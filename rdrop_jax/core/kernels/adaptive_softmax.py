r"""The R-Drop objective of an adaptive softmax.

The vocabulary consists of a frequent head and rarer tails. A token of tail c has
probability :math:`p(v) = p(c)\,p_c(v)`, where :math:`p(c)` is from the head's softmax.
The divergence is that of the full distribution,

.. math::
   s = \tfrac12 \sum_v (p_v - q_v)(\log p_v - \log q_v)
     = \tfrac12 [KL(h_p \| h_q) + KL(h_q \| h_p)]
     + \tfrac12 \sum_c [p(c)\,KL(p_c \| q_c) + q(c)\,KL(q_c \| p_c)] ,

with gradients through :math:`p(c)` and :math:`q(c)`. Sources: Grave et al., 2017 (arXiv
1609.04309); for language models Baevski and Auli, 2019 (arXiv 1809.10853).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from rdrop_jax.core.kernels.chunking import chunked, even_chunks, sizes
from rdrop_jax.core.kernels.clusters import clusters_objective
from rdrop_jax.core.kernels.fused import RowsFunction, fused_objective
from rdrop_jax.core.kernels.partition import MeshSplit, split_over
from rdrop_jax.core.label_checks import reshape_hint
from rdrop_jax.core.losses import as_factor, clear
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean, Pair
from rdrop_jax.core.objective import Denominators, fused_loss_and_metrics
from rdrop_jax.core.terms import position_weights

DIVERGENCES = ("exact", "gold_cluster")


@on_any_mesh()
def adaptive_rdrop_loss(
    hidden: Sequence[Float[Array, "passes *positions _"]],
    kernels: Sequence[Float[Array, "_ _"]],
    labels: Integer[Array, "*positions"],
    *,
    alpha: float | Float[Array, ""],
    where: Bool[Array, "*positions"] | None = None,
    weight: Float[Array, "*positions"] | None = None,
    label_weight: Float[Array, "*positions"] | None = None,
    divergence: str = "exact",
    objective_scale: str = "sum",
    denominators: Denominators | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""Compute `rdrop_loss` of an adaptive softmax in chunks of positions.

    The value and gradients of a chunk are computed together, so the full distribution
    exists for at most ``chunk_size`` positions. Supports first derivatives only.

    Args:
      hidden: inputs of the head and of each tail, [1 or 2 passes, ..., cluster width].
      kernels: kernel of the head [tokens + tails, width], with one row per tail after
        its tokens, then that of each tail [tokens, width]. Ids count through head and
        tails in order.
      labels: token ids [...].
      alpha: weight of the consistency term.
      where: positions that count [...]; masked positions may contain anything.
      weight: float weight per position [...].
      label_weight: weight of the cross entropy only [...].
      divergence: "exact", or "gold_cluster" as in the published code: divergence of the
        head plus, with weight 1, that of the tail containing the label.
      objective_scale: "sum", or "mean" to divide by the number of passes.
      denominators: see `rdrop_jax.rdrop_loss`.
      chunk_size: positions per chunk and device; None chooses automatically.
      mesh: mesh that shards positions over its axes ``data`` and ``fsdp``, along the
        first axis of ``labels``. Each device processes its chunks locally; results are
        then summed over devices.

    Returns:
      Scalar loss in nats, and the metrics ``ce`` per pass and ``kl`` as `Mean`, without
      gradients.

    Raises:
      ValueError: mismatched shapes, more than two passes, or an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden = [jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]), jnp.ones((2, 1, 1))]
      >>> kernels = [jnp.eye(3, 2), jnp.zeros((2, 1))]  # 2 words, then a tail of 2
      >>> loss, _ = adaptive_rdrop_loss(hidden, kernels, jnp.array([3]), alpha=1.0)
      >>> round(float(loss), 4)
      4.8534
    """
    chunk_size = sizes().adaptive_rows if chunk_size is None else chunk_size
    _check(hidden, kernels, labels, divergence, chunk_size)
    passes = len(hidden[0])
    rows = tuple(jnp.moveaxis(x.reshape(passes, -1, x.shape[-1]), 0, 1) for x in hidden)
    split = split_over(mesh, labels.shape[0] if labels.ndim else 1)
    weights = position_weights(hidden[0].shape[1:-1], where, weight, label_weight)
    return fused_loss_and_metrics(
        functools.partial(
            _objective_on,
            split,
            functools.partial(_all_chunks, divergence == "exact", chunk_size),
            (rows, tuple(kernels)),
            labels.reshape(-1),
        ),
        Pair(*(w.reshape(-1) for w in weights)),
        jnp.promote_types(hidden[0].dtype, jnp.float32),
        passes,
        alpha,
        objective_scale,
        denominators,
    )


def _check(
    hidden: Sequence[Array],
    kernels: Sequence[Array],
    labels: Array,
    divergence: str,
    chunk_size: int,
) -> None:
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"divergence must be one of {DIVERGENCES}: found {divergence!r}"
        )
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1: found {chunk_size}")
    if len(hidden) != len(kernels) or not hidden:
        raise ValueError(
            "hidden and kernels must have one entry for the head and each tail: found "
            f"{len(hidden)} and {len(kernels)}"
        )
    if not all(kernel.ndim == 2 for kernel in kernels):
        raise ValueError(
            "kernels must be [tokens, width] each: found "
            f"{[kernel.shape for kernel in kernels]}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be class ids, integers: found {labels.dtype}")
    if kernels[0].shape[0] < len(kernels):
        raise ValueError(
            f"the head must have at least one token, then a row for each of "
            f"{len(kernels) - 1} tails: found {kernels[0].shape}"
        )
    if min(kernel.shape[0] for kernel in kernels) < 1:
        raise ValueError(
            "each cluster must have at least one token: found kernels "
            f"{[kernel.shape for kernel in kernels]}"
        )
    lead = hidden[0].shape[:-1]
    if not lead or not 1 <= lead[0] <= 2 or labels.shape != lead[1:]:
        raise ValueError(
            f"hidden must be [1 or 2 passes, *{labels.shape} of labels, width]: found "
            f"{hidden[0].shape}."
            + reshape_hint("hidden", hidden[0].shape, "labels", labels.shape)
        )
    for h, kernel in zip(hidden, kernels, strict=True):
        if h.shape[:-1] != lead or h.shape[-1] != kernel.shape[1]:
            raise ValueError(
                f"hidden must be [*{lead}, width of its kernel]: found {h.shape} and "
                f"{kernel.shape}"
            )


def _objective_on(
    split: MeshSplit | None, function: RowsFunction, *args: Any
) -> tuple[Array, Pair]:
    """Evaluate `fused_objective` on the rows of each device and sum over devices."""
    if split is None:
        return fused_objective(function, *args)
    rows, whole = PartitionSpec(split.rows), PartitionSpec()

    def local(*args: Any) -> Any:
        return jax.lax.psum(fused_objective(function, *args), split.rows)

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=((rows, whole), rows, rows, whole),
        out_specs=whole,
        check_vma=False,
    )(*args)


def _all_chunks(
    exact: bool,
    chunk_size: int,
    inputs: tuple[tuple[Array, ...], tuple[Array, ...]],
    labels: Array,
    weights: Pair,
    scales: Pair,
    with_gradient: bool,
) -> tuple[Pair, Any]:
    """Compute both terms per position, and gradients in hidden states and kernels."""
    hidden, kernels = inputs
    dtype = scales.ce.dtype

    def body(totals: Any, x: Any) -> tuple[Any, Any]:
        hidden, labels, weights = x
        values, cleared, gradient = _chunk(
            hidden, kernels, labels, weights, scales, exact
        )
        if not with_gradient:
            return totals, (values, None)
        d_hidden, d_kernels = _gradients(cleared, kernels, gradient, dtype)
        return jax.tree.map(jnp.add, totals, d_kernels), (values, d_hidden)

    def whole(x: Array) -> Array:
        """Flatten [chunks, rows] to [positions] and remove the padding."""
        return x.reshape(-1, *x.shape[2:])[: len(labels)]

    count, size = even_chunks(len(labels), chunk_size)
    chunks = jax.tree.map(lambda x: chunked(x, count, size), (hidden, labels, weights))
    zeros = tuple(jnp.zeros_like(k, dtype) for k in kernels) if with_gradient else ()
    totals, found = jax.lax.scan(body, zeros, chunks)
    values, d_hidden = jax.tree.map(whole, found)
    if not with_gradient:
        return values, None
    d_kernels = jax.tree.map(lambda t, k: t.astype(k.dtype), totals, kernels)
    return values, (d_hidden, d_kernels)


def _chunk(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    labels: Array,
    weights: Pair,
    scales: Pair,
    exact: bool,
) -> tuple[Pair, list[list[Array]], list[list[Array]]]:
    """Compute both terms per row, and the factors of the gradients.

    Returns:
      The terms, hidden states per cluster and pass (0 for rows with weight 0), and the
      gradient in their logits.
    """
    # One slice per pass: the CPU backend is fastest on 2-D arrays.
    cleared = [
        [clear(weights.kl != 0, h[:, k]) for k in range(h.shape[1])] for h in hidden
    ]
    logits = [
        [_product(h, kernel, (1, 1), scales.ce.dtype) for h in passes]
        for passes, kernel in zip(cleared, kernels, strict=True)
    ]
    factors = Pair(*map(jnp.multiply, weights, scales))
    found = clusters_objective(logits, labels, weights.ce != 0, factors, exact)
    return found[0], cleared, found[1]


def _gradients(
    hidden: list[list[Array]],
    kernels: tuple[Array, ...],
    gradient: list[list[Array]],
    dtype: jnp.dtype,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return gradients in hidden states [rows, passes, width] and in kernels."""
    d_hidden, d_kernels = [], []
    for kernel, hs, gs in zip(kernels, hidden, gradient, strict=True):
        gs = [as_factor(g, kernel) for g in gs]
        each = [_product(g, kernel, (1, 0), dtype) for g in gs]
        d_hidden.append(jnp.stack(each, axis=1).astype(hs[0].dtype))
        each = [_product(g, h, (0, 0), dtype) for g, h in zip(gs, hs, strict=True)]
        d_kernels.append(functools.reduce(jnp.add, each))
    return tuple(d_hidden), tuple(d_kernels)


def _product(a: Array, b: Array, over: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Multiply two matrices, contracting one axis of each."""
    axes = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=dtype)
