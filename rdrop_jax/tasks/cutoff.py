"""Views of texts by cutoff, which sets embeddings to 0 (Shen et al., 2020).

Source: arXiv 2009.13818. Its code draws ``int(rate * n)`` tokens or features with
replacement for text classification, and each token independently for translation. Here
tokens and features are always drawn independently.
"""

import functools
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from rdrop_jax.core.dropout import dropout_mask, hash_bits
from rdrop_jax.core.passes import Key
from rdrop_jax.tasks.field_checks import views_rate

# cut(key, tokens that may be cut) -> kept embeddings
Cut = Callable[[Key, Bool[Array, "batch time"]], Bool[Array, "batch _ _"]]


def token_cutoff(
    key: Key, where: Bool[Array, "batch time"], *, rate: float
) -> Bool[Array, "batch time 1"]:
    """Cut each token with probability ``rate``, independently.

    Args:
      key: a PRNG key.
      where: True on tokens that may be cut.
      rate: probability of a cut.

    Returns:
      True on tokens that are kept.
    """
    return (dropout_mask(key, rate, where.shape) | ~where)[..., None]


def feature_cutoff(
    key: Key, where: Bool[Array, "batch time"], *, rate: float, width: int
) -> Bool[Array, "batch 1 width"]:
    """Cut each feature of a row with probability ``rate``, for all of its tokens.

    Args:
      key: a PRNG key.
      where: only its number of rows is used.
      rate: probability of a cut.
      width: number of features.

    Returns:
      True on features that are kept.
    """
    return dropout_mask(key, rate, (len(where), width))[:, None]


def span_cutoff(
    key: Key, where: Bool[Array, "batch time"], *, rate: float
) -> Bool[Array, "batch time 1"]:
    """Cut a span of ``int(rate * n)`` of the n tokens of a row, at a uniform place.

    Args:
      key: a PRNG key.
      where: True on the n tokens that may be cut, which are contiguous.
      rate: share of the tokens.

    Returns:
      True on tokens that are kept.
    """
    rows, time = where.shape
    count = jnp.sum(where, axis=1)
    length = jnp.floor(rate * count).astype(count.dtype)
    places = count - length + 1
    offset = hash_bits(key, (rows,)) % places.astype(jnp.uint32)
    start = jnp.argmax(where, axis=1) + offset.astype(count.dtype)
    at = jnp.arange(time)[None] - start[:, None]
    return ((at < 0) | (at >= length[:, None]) | ~where)[..., None]


def make_cut(config: ConfigDict, rates: Mapping[str, float], width: int) -> Cut | None:
    """Make the cutoff of ``rdrop.views``; None if the field is "none".

    Args:
      config: config of the run.
      rates: kinds that the task supports, with their default rates.
      width: number of features of an embedding.
    """
    rate = views_rate(config.rdrop, rates)
    if rate is None:
        return None
    kind = config.rdrop.views
    if kind == "feature_cutoff":
        return functools.partial(feature_cutoff, rate=rate, width=width)
    chosen = span_cutoff if kind == "span_cutoff" else token_cutoff
    return functools.partial(chosen, rate=rate)
