r"""The R-Drop objective of an adaptive softmax.

Words of a frequent head and of rarer tails: a word of tail c has probability
:math:`p(v) = p(c)\,p_c(v)`, where the head's softmax gives :math:`p(c)`. The divergence
is that of the whole distribution,

.. math::
   s = \tfrac12 \sum_v (p_v - q_v)(\log p_v - \log q_v)
     = \tfrac12 [KL(h_p \| h_q) + KL(h_q \| h_p)]
     + \tfrac12 \sum_c [p(c)\,KL(p_c \| q_c) + q(c)\,KL(q_c \| p_c)] ,

with gradient through :math:`p(c)` and :math:`q(c)`. Grave et al., 2017 (arXiv
1609.04309); in language models Baevski and Auli, 2019 (arXiv 1809.10853).
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Integer

from rdrop_jax.core.losses import clear, weighted
from rdrop_jax.core.metrics import Mean
from rdrop_jax.core.rdrop import Denominators, metrics_of, scales
from rdrop_jax.core.split import Split, split_over
from rdrop_jax.core.terms import position_weights

DIVERGENCES = ("exact", "gold_cluster")
_CHUNK_SIZE = 256


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
    chunk_size: int = _CHUNK_SIZE,
    mesh: Mesh | None = None,
) -> tuple[Float[Array, ""], dict[str, Mean]]:
    r"""`rdrop_loss` of an adaptive softmax, a few positions at a time.

    Value and gradients of a chunk are made together, so that the distributions of all
    words never exist for more than ``chunk_size`` positions. First derivatives only.

    Args:
      hidden: the head's input and each tail's, [1 or 2 passes, ..., width of its own].
      kernels: the head's [words + tails, width], one row per tail after its words, and
        each tail's [words, width]. Ids count through head and tails in order.
      labels: word ids [...].
      alpha: weight of the consistency term.
      where: positions that count [...]; the others may hold anything.
      weight: float weight per position [...].
      label_weight: weight of the cross entropy alone [...].
      divergence: "exact", or "gold_cluster": the published code's sum of the divergence
        of the head and, with weight 1, of the tail that the label is in.
      objective_scale: "sum", or "mean" to divide by the passes.
      denominators: as `rdrop_jax.rdrop_loss`.
      chunk_size: positions at a time and device.
      mesh: where positions are split over devices: over its axes ``data`` and ``fsdp``
        along the first axis of ``labels``. Each device has chunks of its own; sums over
        devices follow.

    Returns:
      Scalar loss in nats, and metrics: ``ce`` per pass and ``kl`` as `Mean`, which
      carry no gradient.

    Raises:
      ValueError: shapes that do not fit, more than two passes, an unknown option.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden = [jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]), jnp.ones((2, 1, 1))]
      >>> kernels = [jnp.eye(3, 2), jnp.zeros((2, 1))]  # 2 words, then a tail of 2
      >>> loss, _ = adaptive_rdrop_loss(hidden, kernels, jnp.array([3]), alpha=1.0)
      >>> round(float(loss), 4)
      4.8534
    """
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
            "hidden and kernels must be of the head and of each tail: found "
            f"{len(hidden)} and {len(kernels)}"
        )
    if kernels[0].shape[0] < len(kernels):
        raise ValueError(
            f"the head must have at least one word, then a row for each of "
            f"{len(kernels) - 1} tails: found {kernels[0].shape}"
        )
    lead = hidden[0].shape[:-1]
    if not 1 <= lead[0] <= 2 or labels.shape != lead[1:]:
        raise ValueError(
            f"hidden must be [1 or 2 passes, *{labels.shape} of labels, width]: found "
            f"{hidden[0].shape}"
        )
    for h, kernel in zip(hidden, kernels, strict=True):
        if h.shape[:-1] != lead or h.shape[-1] != kernel.shape[1]:
            raise ValueError(
                f"hidden must be [*{lead}, width of its kernel]: found {h.shape} and "
                f"{kernel.shape}"
            )


class _PerRow(NamedTuple):
    labels: Any  # of gradients None
    s: Array
    ce: Array


def _objective_on(
    split: Split | None, divergence: str, chunk_size: int, *args: Any
) -> tuple[Array, Array, Array]:
    """`_objective`, the rows of each device by themselves."""
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
    found = jax.lax.map(
        lambda x: _chunk(x[0], kernels, x[1], scales, divergence)[1], chunks
    )
    return _total(*_whole_rows(found, per_row), per_row, scales)


def _forward(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    per_row: _PerRow,
    scales: tuple[Array, Array],
    divergence: str,
    chunk_size: int,
) -> tuple[Any, Any]:
    gradient = jax.grad(_chunk, argnums=(0, 1), has_aux=True)

    def body(totals: Any, x: Any) -> tuple[Any, Any]:
        (d_hidden, d_kernels), found = gradient(x[0], kernels, x[1], scales, divergence)
        totals = jax.tree.map(lambda t, d: t + d.astype(t.dtype), totals, d_kernels)
        return totals, (d_hidden, found)

    zeros = [jnp.zeros(k.shape, scales[0].dtype) for k in kernels]
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
    """Of [chunks, rows] those that are not padding [positions]."""
    ce, s = (x.reshape(-1)[: len(per_row.s)] for x in chunks)
    return ce, s


def _total(
    ce: Array, s: Array, per_row: _PerRow, scales: tuple[Array, Array]
) -> tuple[Array, Array, Array]:
    """The loss, and the weighted sums of cross entropy and divergence."""
    ce, s = jnp.sum(weighted(per_row.ce, ce)), jnp.sum(weighted(per_row.s, s))
    return weighted(scales[0], ce) + weighted(scales[1], s), ce, s


def _chunked(tree: Any, size: int) -> Any:
    """Rows as [chunks, rows, ...]; what is added counts nothing."""

    def cut(x: Array) -> Array:
        count = -(-len(x) // size)
        rest = [(0, count * size - len(x))] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, rest).reshape(count, size, *x.shape[1:])

    return jax.tree.map(cut, tree)


def _chunk(
    hidden: tuple[Array, ...],
    kernels: tuple[Array, ...],
    per_row: _PerRow,
    scales: tuple[Array, Array],
    divergence: str,
) -> tuple[Array, tuple[Array, Array]]:
    """The loss of some rows; cross entropy and divergence of each, 0 if it is out."""
    counts = per_row.s != 0
    dtype = scales[0].dtype
    log_p = [
        jax.nn.log_softmax(
            jnp.einsum(
                "npw,vw->pnv", clear(counts, h), k, preferred_element_type=dtype
            ),
            axis=-1,
        )
        for h, k in zip(hidden, kernels, strict=True)
    ]
    head, tails = log_p[0], log_p[1:]
    words = head.shape[-1] - len(tails)
    parts = [head[..., :words]]
    parts += [head[..., words + i, None] + tail for i, tail in enumerate(tails)]
    labels = clear(per_row.ce != 0, per_row.labels)
    nll, within = _picked(parts, labels)
    ce = clear(per_row.ce != 0, jnp.sum(nll, axis=0))
    if head.shape[0] == 1:
        s = jnp.zeros_like(per_row.s)
    elif divergence == "exact":
        s = functools.reduce(jnp.add, map(_half_jeffreys, parts))
    else:
        s = _half_jeffreys(head)
        for tail, hit in zip(tails, within[1:], strict=True):
            s += jnp.where(hit, _half_jeffreys(tail), 0.0)
    return _total(ce, s, per_row, scales)[0], (ce, s)


def _half_jeffreys(log_p: Float[Array, "two rows words"]) -> Float[Array, " rows"]:
    """Half of both KLs in one sum without a negative term."""
    p = jnp.exp(log_p)
    return 0.5 * jnp.sum((p[0] - p[1]) * (log_p[0] - log_p[1]), axis=-1)


def _picked(parts: list[Array], labels: Array) -> tuple[Array, list[Array]]:
    """Minus log p of each label [passes, rows], and which part it is in [rows]."""
    nll = jnp.zeros(parts[0].shape[:2], parts[0].dtype)
    start, within = 0, []
    for part in parts:
        size = part.shape[-1]
        hit = (labels >= start) & (labels < start + size)
        local = jnp.clip(labels - start, 0, size - 1)
        picked = jnp.take_along_axis(part, local[None, :, None], axis=-1)[..., 0]
        nll -= jnp.where(hit[None], picked, 0.0)
        within.append(hit)
        start += size
    valid = (labels >= 0) & (labels < start)
    return jnp.where(valid[None], nll, jnp.nan), within
