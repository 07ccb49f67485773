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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from rdrop_jax.core.kernels.clusters import Clusters, clusters_objective
from rdrop_jax.core.kernels.partition import Split, split_over
from rdrop_jax.core.losses import as_factor, clear, weighted
from rdrop_jax.core.meshes import on_any_mesh
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.objective import Denominators, metrics_of, scales
from rdrop_jax.core.terms import position_weights, reshape_hint

DIVERGENCES = ("exact", "gold_cluster")
# Positions per chunk. On CPU, a chunk with a 10,000-token vocabulary fits in cache.
_CHUNK_SIZE = {"cpu": 64}
_CHUNK_SIZE_ELSEWHERE = 256


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
    if chunk_size is None:
        chunk_size = _CHUNK_SIZE.get(jax.default_backend(), _CHUNK_SIZE_ELSEWHERE)
    _check(hidden, kernels, labels, divergence, chunk_size)
    positions = hidden[0].shape[1:-1]
    dtype = jnp.promote_types(hidden[0].dtype, jnp.float32)
    w, label_w = (
        x.astype(dtype).reshape(-1)
        for x in position_weights(positions, where, weight, label_weight)
    )
    own = (jnp.sum(label_w), jnp.sum(w))
    passes = len(hidden[0])
    s_scale, ce_scale = scales(own, denominators, alpha, passes, objective_scale)
    rows = tuple(jnp.moveaxis(x.reshape(passes, -1, x.shape[-1]), 0, 1) for x in hidden)
    loss, ce, s = _objective_on(
        split_over(mesh, labels.shape[0] if labels.ndim else 1),
        divergence,
        chunk_size,
        rows,
        tuple(kernels),
        _PerRow(labels.reshape(-1), w, label_w),
        (jnp.asarray(ce_scale, dtype), jnp.asarray(s_scale, dtype)),
    )
    return loss, metrics_of(Mean(ce, own[0]), Mean(s, own[1]), passes)


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


class _PerRow(NamedTuple):
    labels: Any  # None in gradients
    s: Array
    ce: Array


def _objective_on(
    split: Split | None, divergence: str, chunk_size: int, *args: Any
) -> tuple[Array, Array, Array]:
    """Evaluate `_objective` on the rows of each device and sum over devices."""
    if split is None:
        return _objective(*args, divergence, chunk_size)
    rows, whole = PartitionSpec(split.rows), PartitionSpec()

    def local(*args: Any) -> Any:
        return jax.lax.psum(_objective(*args, divergence, chunk_size), split.rows)

    return jax.shard_map(
        local,
        mesh=split.mesh,
        in_specs=(rows, whole, rows, whole),
        out_specs=whole,
        check_vma=False,
    )(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _objective(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    per_row: _PerRow,
    scales: tuple[Array, Array],
    divergence: str,
    chunk_size: int,
) -> tuple[Array, Array, Array]:
    chunks = _chunked((hidden, per_row), chunk_size)

    def values(x: Any) -> tuple[Array, Array]:
        chunk = _chunk(x[0], kernels, x[1], scales, divergence)
        return chunk.ce, chunk.s  # the compiler removes the unused gradient

    found = jax.lax.map(values, chunks)
    return _total(*_whole_rows(found, per_row), per_row, scales)


def _forward(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    per_row: _PerRow,
    scales: tuple[Array, Array],
    divergence: str,
    chunk_size: int,
) -> tuple[Any, Any]:
    dtype = scales[0].dtype

    def body(totals: Any, x: Any) -> tuple[Any, Any]:
        chunk = _chunk(x[0], kernels, x[1], scales, divergence)
        d_hidden, d_kernels = _gradients(chunk, kernels, dtype)
        return jax.tree.map(jnp.add, totals, d_kernels), (d_hidden, (chunk.ce, chunk.s))

    zeros = [jnp.zeros_like(k, dtype) for k in kernels]
    chunks = _chunked((hidden, per_row), chunk_size)
    totals, (d_hidden, found) = jax.lax.scan(body, tuple(zeros), chunks)
    d_hidden = jax.tree.map(
        lambda d, h: d.reshape(-1, *h.shape[1:])[: len(h)], d_hidden, hidden
    )
    d_kernels = jax.tree.map(lambda t, k: t.astype(k.dtype), totals, kernels)
    ce, s = _whole_rows(found, per_row)
    found = _total(ce, s, per_row, scales)
    d_rows = _PerRow(None, scales[1] * s, scales[0] * ce)
    return found, (d_hidden, d_kernels, d_rows, found[1:])


def _backward(divergence: str, chunk_size: int, kept: Any, cotangents: Any) -> Any:
    c = cotangents[0]
    return jax.tree.map(lambda g: (g * c).astype(g.dtype), kept)


_objective.defvjp(_forward, _backward)


def _whole_rows(chunks: tuple[Array, Array], per_row: _PerRow) -> tuple[Array, Array]:
    """Flatten [chunks, rows] to [positions] and remove the padding."""
    ce, s = (x.reshape(-1)[: len(per_row.s)] for x in chunks)
    return ce, s


def _total(
    ce: Array, s: Array, per_row: _PerRow, scales: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """Return the loss and the weighted sums of cross entropy and divergence."""
    ce, s = jnp.sum(weighted(per_row.ce, ce)), jnp.sum(weighted(per_row.s, s))
    return weighted(scales[0], ce) + weighted(scales[1], s), ce, s


def _chunked(tree: Any, size: int) -> Any:
    """Reshape rows to [chunks, rows, ...]; zero padding has weight 0."""

    def cut(x: Array) -> Array:
        count = -(-len(x) // size)
        rows = -(-len(x) // max(count, 1))
        rest = [(0, count * rows - len(x))] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, rest).reshape(count, rows, *x.shape[1:])

    return jax.tree.map(cut, tree)


class _Chunk(NamedTuple):
    """Cross entropy and divergence of a chunk of rows, and factors of the gradients."""

    ce: Array
    s: Array
    hidden: list[list[Array]]  # per cluster and pass; 0 for rows with weight 0
    gradient: list[list[Array]]  # gradient in the logits


def _chunk(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    per_row: _PerRow,
    scales: tuple[Array, Array],
    divergence: str,
) -> _Chunk:
    counts, dtype = per_row.s != 0, scales[0].dtype
    # One slice per pass: the CPU backend is fastest on 2-D arrays.
    cleared = [[clear(counts, h[:, k]) for k in range(h.shape[1])] for h in hidden]
    rows = Clusters(
        [
            [_product(h, kernel, (1, 1), dtype) for h in passes]
            for passes, kernel in zip(cleared, kernels, strict=True)
        ],
        labels=per_row.labels,
        labelled=per_row.ce != 0,
        s=per_row.s * scales[1],
        ce=per_row.ce * scales[0],
    )
    ce, s, gradient = clusters_objective(rows, exact=divergence == "exact")
    return _Chunk(ce, s, cleared, gradient)


def _gradients(
    chunk: _Chunk, kernels: tuple[Array, ...], dtype: jnp.dtype
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return gradients in hidden states [rows, passes, width] and in kernels."""
    d_hidden, d_kernels = [], []
    for kernel, hs, gs in zip(kernels, chunk.hidden, chunk.gradient, strict=True):
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
