r"""Objective and gradient of a chunk of rows of an adaptive softmax.

A token v of tail c has probability :math:`p(c)\,p_c(v)`. For each pass, twice the
divergence has the gradient :math:`G_v = P_v (\log P_v - \log Q_v) + P_v - Q_v` in the
log-probabilities of head and tails. The gradients of a tail's tokens are summed at the
tail's row of the head. Each softmax turns them into :math:`G - p \sum_v G_v`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from rdrop_jax.core.kernels.softmax import Softmax, softmax
from rdrop_jax.core.label_checks import valid_class_ids
from rdrop_jax.core.losses import clear
from rdrop_jax.core.metrics import Pair


def clusters_objective(
    logits: list[list[Array]],
    labels: Integer[Array, " rows"],
    labelled: Bool[Array, " rows"],
    factors: Pair,
    exact: bool,
) -> tuple[Pair, list[list[Array]]]:
    """Compute cross entropy of all passes and divergence per row, and the gradient.

    Args:
      logits: logits of the head, then of each tail, [rows, tokens] per pass, at least
        float32 and finite even in masked rows. The head has one more column per tail
        after its tokens.
      labels: token ids, counted through head and tails.
      labelled: True if the label of the row counts.
      factors: factors of the two terms in the loss [rows].
      exact: True for the divergence of the full distribution. False for that of the
        head plus, with weight 1, that of the tail containing the label.

    Returns:
      The two terms [rows], and the gradient of
      ``sum(factors.ce * ce + factors.kl * kl)`` in the structure of the logits.
    """
    found = [[softmax(z) for z in passes] for passes in logits]
    ce, places = _cross_entropy(found, clear(labelled, labels))
    ce = clear(labelled, ce)
    # An invalid label gives a NaN gradient too.
    column = jnp.where(jnp.isnan(ce), jnp.nan, factors.ce)[:, None]
    gradient = [
        [column * (place.inside * f.p - place.hot) for f in passes]
        for passes, place in zip(found, places, strict=True)
    ]
    if len(found[0]) == 1:
        return Pair(ce, jnp.zeros_like(ce)), gradient
    kl, pulls = _divergence(found, [place.inside for place in places], exact)
    half = 0.5 * factors.kl[:, None]
    gradient = [
        [g + half * pull for g, pull in zip(*both, strict=True)]
        for both in zip(gradient, pulls, strict=True)
    ]
    return Pair(ce, kl), gradient


class _Place(NamedTuple):
    """Location of the labels in a cluster."""

    inside: Array  # 1 if the label is in the cluster [rows, 1]
    hot: Array  # one-hot label [rows, tokens]


def _cross_entropy(
    found: list[list[Softmax]], labels: Array
) -> tuple[Array, list[_Place]]:
    """Sum cross entropy over passes per row; NaN if the label is out of range."""
    sizes = [passes[0].z.shape[-1] for passes in found]
    words = end = sizes[0] - len(found) + 1
    labels, valid = valid_class_ids(labels, sum(sizes) - len(found) + 1)
    at = [labels]
    for i, size in enumerate(sizes[1:]):
        local = labels - end
        # In the head, the label of a tail's token is the tail's row.
        at[0] = jnp.where((local >= 0) & (local < size), words + i, at[0])
        at.append(local)
        end += size
    ce, places = jnp.zeros(labels.shape, found[0][0].z.dtype), []
    for passes, size, index in zip(found, sizes, at, strict=True):
        inside = (index >= 0) & (index < size)
        within = jnp.clip(index, 0, size - 1)[:, None]
        for f in passes:
            nll = f.log_z - jnp.take_along_axis(f.z, within, axis=-1)
            ce += jnp.where(inside, nll[:, 0], 0.0)
        hot = jnp.arange(size)[None] == index[:, None]
        places.append(_Place(inside[:, None].astype(ce.dtype), hot.astype(ce.dtype)))
    return ce * valid, places


class _Change(NamedTuple):
    """Terms of the divergence between two passes P and Q of a cluster.

    For the head, P and Q are its probabilities. For a tail, they are multiplied by the
    tail's probability in the head. If the divergence is not exact, the factor is 1 for
    the tail containing the label, else 0.
    """

    r: Array  # log P - log Q
    change: Array  # P - Q
    p_r: Array
    q_r: Array


def _divergence(
    found: list[list[Softmax]], inside: list[Array], exact: bool
) -> tuple[Array, list[list[Array]]]:
    """Return half the Jeffreys divergence per row, and twice its gradient."""
    (a, b), tails = found[0], found[1:]
    words = a.z.shape[-1] - len(tails)
    head = _change(a, b)
    own = words if exact else a.z.shape[-1]  # the tail's tokens cover its head row
    # In this form no term is negative and nearly equal passes lose no precision.
    twice = _sum((head.change * head.r)[:, :own])
    p_r, q_r, pulls = [head.p_r[:, :own]], [head.q_r[:, :own]], []
    for i, ((f, g), hit) in enumerate(zip(tails, inside[1:], strict=True)):
        row = slice(words + i, words + i + 1)
        if exact:
            m, n, shift = a.p[:, row], b.p[:, row], head.r[:, row]
        else:
            m, n, shift = hit, hit, jnp.zeros_like(hit)
        tail = _change(f, g, m, n, shift)
        both, of_p = _sum(tail.change * tail.r), _sum(tail.p_r)
        of_q = of_p - both
        twice += both
        if exact:
            p_r.append(of_p)
            q_r.append(of_q)
        # Add the small terms first: adding them to m would round away their digits.
        pulls.append(_pull(tail, f, g, of_p + (m - n), of_q + (m - n)))
    head = head._replace(
        p_r=jnp.concatenate(p_r, axis=-1), q_r=jnp.concatenate(q_r, axis=-1)
    )
    pulls.insert(0, _pull(head, a, b, _sum(head.p_r), _sum(head.q_r)))
    return 0.5 * twice[:, 0], pulls


def _change(
    a: Softmax,
    b: Softmax,
    m: Array | float = 1.0,
    n: Array | float = 1.0,
    shift: Array | float = 0.0,
) -> _Change:
    """Scale P by ``m`` and Q by ``n``; ``shift`` is log m - log n."""
    r = (a.z - b.z) - (a.log_z - b.log_z) + shift
    p, q = m * a.p, n * b.p
    return _Change(r, p - q, p * r, q * r)


def _pull(x: _Change, a: Softmax, b: Softmax, g_p: Array, g_q: Array) -> list[Array]:
    """Return the two gradients in logits; ``g_p`` and ``-g_q`` are the sums of G."""
    return [
        x.p_r + x.change - a.p * g_p,
        b.p * g_q - x.q_r - x.change,
    ]


def _sum(x: Float[Array, "rows tokens"]) -> Float[Array, "rows 1"]:
    return jnp.sum(x, axis=-1, keepdims=True)
