r"""Objective and gradient of a few rows of an adaptive softmax.

A word v of tail c has probability :math:`p(c)\,p_c(v)`. In the log probabilities of
head and tails, twice the divergence has for each pass the gradient
:math:`G_v = P_v (\log P_v - \log Q_v) + P_v - Q_v`. That of the words of a tail adds up
at its row of the head, and each softmax makes :math:`G - p \sum_v G_v` of it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.core.losses import clear
from rdrop_jax.core.softmax_rows import Softmax, softmax


class Clusters(NamedTuple):
    """Rows of logits, one array per cluster and pass, and what is known of each row.

    Attributes:
      logits: of the head, then of each tail: [rows, words] per pass, at least float32
        and finite also where a row does not count. The head has one more for each tail
        after its words.
      labels: word ids [rows], counted through head and tails.
      labelled: whether its label counts [rows].
      s: coefficient of the divergence [rows].
      ce: coefficient of the cross entropy [rows].
    """

    logits: list[list[Array]]
    labels: Array
    labelled: Array
    s: Array
    ce: Array


def clusters_objective(
    x: Clusters, exact: bool
) -> tuple[Float[Array, " rows"], Float[Array, " rows"], list[list[Array]]]:
    """Cross entropy of all passes and divergence per row, and the gradient.

    Args:
      x: the rows.
      exact: whether the divergence is that of the distribution of all words; else the
        head's and, with weight 1, that of the tail that the label is in.

    Returns:
      ``ce`` [rows], ``s`` [rows], and like the logits the gradient of
      ``sum(x.ce * ce + x.s * s)``.
    """
    found = [[softmax(z) for z in passes] for passes in x.logits]
    ce, places = _cross_entropy(found, clear(x.labelled, x.labels).astype(int))
    ce = clear(x.labelled, ce)
    # No such word: no gradient either.
    column = jnp.where(jnp.isnan(ce), jnp.nan, x.ce)[:, None]
    gradient = [
        [column * (place.inside * f.p - place.hot) for f in passes]
        for passes, place in zip(found, places, strict=True)
    ]
    if len(found[0]) == 1:
        return ce, jnp.zeros_like(ce), gradient
    s, pulls = _divergence(found, [place.inside for place in places], exact)
    half = 0.5 * x.s[:, None]
    gradient = [
        [g + half * pull for g, pull in zip(*pair, strict=True)]
        for pair in zip(gradient, pulls, strict=True)
    ]
    return ce, s, gradient


class _Place(NamedTuple):
    """Where the label is in a cluster."""

    inside: Array  # 1 if it is [rows, 1]
    hot: Array  # 1 at it [rows, words]


def _cross_entropy(
    found: list[list[Softmax]], labels: Array
) -> tuple[Array, list[_Place]]:
    """Sum over passes per row; NaN if there is no such word."""
    sizes = [passes[0].z.shape[-1] for passes in found]
    words = end = sizes[0] - len(found) + 1
    at = [labels]
    for i, size in enumerate(sizes[1:]):
        local = labels - end
        # In the head a word of a tail is that tail's row.
        at[0] = jnp.where((local >= 0) & (local < size), words + i, at[0])
        at.append(local)
        end += size
    valid = jnp.where((labels >= 0) & (labels < end), 1.0, jnp.nan)
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


class _Pair(NamedTuple):
    """Two passes of a cluster.

    P and Q are its probabilities times that of its tail in the head; the head's own as
    they are; and where the divergence is not exact a tail's own if it has the label,
    else 0.
    """

    r: Array  # log P - log Q
    change: Array  # P - Q
    p_r: Array
    q_r: Array


def _divergence(
    found: list[list[Softmax]], inside: list[Array], exact: bool
) -> tuple[Array, list[list[Array]]]:
    """Half Jeffreys divergence per row, and twice its gradient."""
    (a, b), tails = found[0], found[1:]
    words = a.z.shape[-1] - len(tails)
    head = _pair(a, b)
    own = words if exact else a.z.shape[-1]  # a tail's words say all of its row
    # Written as one sum no term is negative, and nearly equal passes lose no digits.
    twice = _sum((head.change * head.r)[:, :own])
    p_r, q_r, pulls = [head.p_r[:, :own]], [head.q_r[:, :own]], []
    for i, ((f, g), hit) in enumerate(zip(tails, inside[1:], strict=True)):
        row = slice(words + i, words + i + 1)
        if exact:
            m, n, shift = a.p[:, row], b.p[:, row], head.r[:, row]
        else:
            m, n, shift = hit, hit, jnp.zeros_like(hit)
        tail = _pair(f, g, m, n, shift)
        both, of_p = _sum(tail.change * tail.r), _sum(tail.p_r)
        of_q = of_p - both
        twice += both
        if exact:
            p_r.append(of_p)
            q_r.append(of_q)
        # Small beside small: added to m first, both would be rounded to its digits.
        pulls.append(_pull(tail, f, g, of_p + (m - n), of_q + (m - n)))
    head = head._replace(
        p_r=jnp.concatenate(p_r, axis=-1), q_r=jnp.concatenate(q_r, axis=-1)
    )
    pulls.insert(0, _pull(head, a, b, _sum(head.p_r), _sum(head.q_r)))
    return 0.5 * twice[:, 0], pulls


def _pair(
    a: Softmax,
    b: Softmax,
    m: Array | float = 1.0,
    n: Array | float = 1.0,
    shift: Array | float = 0.0,
) -> _Pair:
    """P is ``m`` times the probabilities, Q ``n`` times; shift is log m - log n."""
    r = (a.z - b.z) - (a.log_z - b.log_z) + shift
    p, q = m * a.p, n * b.p
    return _Pair(r, p - q, p * r, q * r)


def _pull(pair: _Pair, a: Softmax, b: Softmax, g_p: Array, g_q: Array) -> list[Array]:
    """The two gradients in logits; ``g_p`` and ``-g_q`` are the sums of G."""
    return [
        pair.p_r + pair.change - a.p * g_p,
        b.p * g_q - pair.q_r - pair.change,
    ]


def _sum(x: Float[Array, "rows words"]) -> Float[Array, "rows 1"]:
    return jnp.sum(x, axis=-1, keepdims=True)
