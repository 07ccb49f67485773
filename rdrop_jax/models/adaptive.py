"""Language model with adaptive input and adaptive softmax, as `transformer_lm_wiki103`.

Token ids are sorted by frequency, most frequent first. Embeddings of cluster i are
``factor ** i`` times narrower than those of the first, and are projected to the model
width. Input and output share embeddings and projections. Pre-norm without a final norm,
ReLU. Baevski and Auli, 2019 (arXiv 1809.10853); dropout and weight tying as in fairseq.
"""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rdrop_jax.models.blocks import Rates, Stack, block_settings
from rdrop_jax.models.decoder import CausalDecoder
from rdrop_jax.models.embeddings import Keep, Positions, cut
from rdrop_jax.models.layers import PARTITION_RULES, Dropout, Dtype
from rdrop_jax.models.outputs import AdaptiveOutput
from rdrop_jax.models.sizes import Size

__all__ = ["PARTITION_RULES", "SIZES", "AdaptiveDecoder", "clusters"]

SIZES = {
    "mini": Size(2, 128, 4, 512),
    "wiki103": Size(16, 1024, 8, 4096),
}


def clusters(
    cutoffs: Sequence[int], vocab_size: int, width: int, factor: int
) -> list[tuple[int, int, int]]:
    """Return first token id, number of tokens and width of every cluster.

    Args:
      cutoffs: first token id of each cluster after the head.
      vocab_size: number of tokens in the vocabulary.
      width: width of the model and of the head's embeddings.
      factor: ratio of the widths of successive clusters.

    Returns:
      One triple per cluster.

    Raises:
      ValueError: cutoffs that do not increase within the vocabulary, or a cluster of
        width 0.

    Example:
      >>> clusters((20, 60), 100, 64, 4)
      [(0, 20, 64), (20, 40, 16), (60, 40, 4)]
    """
    bounds = [0, *cutoffs, vocab_size]
    if any(a >= b for a, b in itertools.pairwise(bounds)):
        raise ValueError(
            "cutoffs must increase, above 0 and below the vocabulary size "
            f"{vocab_size}: found {tuple(cutoffs)}"
        )
    widths = [width // max(factor, 1) ** i for i in range(len(bounds) - 1)]
    if factor < 1 or not all(widths):
        raise ValueError(
            f"factor must be at least 1 and leave every cluster a width of at least 1: "
            f"found {factor}, {widths}"
        )
    return [(a, b - a, w) for a, b, w in zip(bounds, bounds[1:], widths, strict=False)]


class AdaptiveDecoder(CausalDecoder):
    """Decoder-only language model with adaptive input and adaptive softmax.

    Attributes:
      vocab_size: number of tokens, sorted by frequency, most frequent first.
      cutoffs: first token id of each cluster after the head.
      factor: ratio of the widths of successive clusters.
      size: depth and widths.
      rates: dropout rates.
      softmax_dropout: rate before the output and after the projection of each tail.
      activation: "relu" or "gelu".
      positions: "fairseq" or "marian" sinusoids, or "learned".
      position_offset: table row of the first position.
      max_length: maximum number of positions.
      dtype: dtype of the activations; parameters are float32.
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
    """

    vocab_size: int
    cutoffs: tuple[int, ...] = (20_000, 60_000)
    factor: int = 4
    size: Size = SIZES["wiki103"]
    rates: Rates = Rates(dropout=0.3, attention=0.1, activation=0.1)
    softmax_dropout: float = 0.2
    activation: str = "relu"
    positions: str = "fairseq"
    position_offset: int = 0
    max_length: int = 3072
    dtype: Dtype = jnp.float32
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        width = self.size.width
        self.parts = clusters(self.cutoffs, self.vocab_size, width, self.factor)
        self.embedding = [
            self.param(
                f"embedding_{i}",
                nn.initializers.normal(narrow**-0.5),
                (words, narrow),
                jnp.float32,
            )
            for i, (_, words, narrow) in enumerate(self.parts)
        ]
        xavier = nn.initializers.xavier_uniform()
        self.projection = [
            self.param(f"projection_{i}", xavier, (narrow, width), jnp.float32)
            for i, (_, _, narrow) in enumerate(self.parts)
        ]
        shape = (len(self.parts) - 1, width)
        self.classes = self.param("classes", xavier, shape, jnp.float32)
        self.place = Positions(
            self.positions, width, self.max_length, self.position_offset, self.dtype
        )
        self.drop_in = Dropout(self.rates.dropout, self.masks)
        self.drop_out = [Dropout(self.softmax_dropout, self.masks) for _ in self.parts]
        settings = block_settings(self, pre_norm=True)
        self.stack = Stack(self.size.layers, settings, False, self.remat)

    def embed_tokens(
        self,
        tokens: Int[Array, "batch time"],
        at: Int[Array, "1 _"],
        train: bool,
        keep: Keep = None,
    ) -> Float[Array, "batch time width"]:
        """Embed tokens at positions ``at``."""
        x = jnp.zeros((*tokens.shape, self.size.width), self.dtype)
        for (first, words, _), table, matrix in zip(
            self.parts, self.embedding, self.projection, strict=True
        ):
            local = tokens - first
            within = (local >= 0) & (local < words)
            rows = jnp.take(table, jnp.clip(local, 0, words - 1), axis=0)
            rows = jnp.where(within[..., None], rows, 0.0).astype(self.dtype)
            x = x + rows @ matrix.astype(self.dtype)
        x = cut(x * self.size.width**0.5, keep) + self.place(at)
        return self.drop_in(x, train=train)

    def make_output(
        self, x: Float[Array, "batch time width"], train: bool
    ) -> AdaptiveOutput:
        """Return inputs and kernels of the head and of each tail.

        They have the format of
        `rdrop_jax.core.kernels.adaptive_softmax.adaptive_rdrop_loss`.
        """
        x = self.drop_out[0](x, train=train)
        hidden = [x]
        for matrix, drop in zip(self.projection[1:], self.drop_out[1:], strict=True):
            narrow = jnp.einsum("btw,nw->btn", x, matrix.astype(self.dtype))
            hidden.append(drop(narrow, train=train))
        head = jnp.concatenate([self.embedding[0], self.classes])
        kernels = [k.astype(self.dtype) for k in (head, *self.embedding[1:])]
        return AdaptiveOutput(tuple(hidden), tuple(kernels))
