"""Decoder-only Transformer language model, as fairseq's `transformer_lm_gpt`.

Pre-norm with a norm at the end, GELU, fixed sinusoids, one table for input and output,
whose rows are scaled by the square root of the width on their way in. Dropout stands
after the embedding, after every sublayer and on attention weights.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.decoding.cache import Cache
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import Form, Rates
from rdrop_jax.models.causal import CausalStack, empty_cache
from rdrop_jax.models.embeddings import Embed
from rdrop_jax.models.layers import Dtype

# The table is cut over the vocabulary, the rest as layers say.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embedding", PartitionSpec("tensor", None)),
    *layers.PARTITION_RULES,
)


class Size(NamedTuple):
    """Depth and widths."""

    layers: int
    width: int
    heads: int
    mlp_width: int


SIZES = {
    "mini": Size(2, 128, 4, 512),
    "transformer_lm_gpt": Size(12, 768, 12, 3072),
}


class Decoder(nn.Module):
    """A language model whose output is its own table of tokens.

    Attributes:
      vocab_size: tokens.
      size: depth and widths.
      rates: of dropout at its sites.
      pre_norm: norms before the sublayers and after the last block.
      activation: "gelu" or "relu".
      positions: "fairseq" or "marian" sinusoids, or "learned".
      position_offset: row of the first position.
      max_length: most positions.
      scale_embedding: multiply token vectors by the square root of the width.
      dtype: of the activations; parameters are float32.
      remat: recompute each block in the backward pass.
      masks: of dropout, "hash" or "bernoulli" as `rdrop_jax.dropout`.
    """

    vocab_size: int
    size: Size = SIZES["transformer_lm_gpt"]
    rates: Rates = Rates(dropout=0.1, attention=0.1)
    pre_norm: bool = True
    activation: str = "gelu"
    positions: str = "fairseq"
    position_offset: int = 0
    max_length: int = 512
    scale_embedding: bool = True
    dtype: Dtype = jnp.float32
    remat: bool = False
    masks: str = "hash"

    def setup(self) -> None:
        """Names the parameters."""
        width = self.size.width
        self.embedding = self.param(
            "embedding",
            nn.initializers.normal(width**-0.5),
            (self.vocab_size, width),
            jnp.float32,
        )
        self.embed = Embed(
            self.positions,
            width,
            self.max_length,
            self.position_offset,
            width**0.5 if self.scale_embedding else 1.0,
            False,
            self.rates.dropout,
            self.dtype,
            self.masks,
        )
        self.form = Form(
            self.size.heads,
            self.size.mlp_width,
            self.rates,
            self.pre_norm,
            self.activation,
            self.dtype,
            self.masks,
        )
        self.stack = CausalStack(self.size.layers, self.form, self.pre_norm, self.remat)

    def __call__(
        self, tokens: Int[Array, "batch time"], *, train: bool
    ) -> LinearOutput:
        """Of the next token at every position.

        Args:
          tokens: ids.
          train: whether dropout is on; it then needs the stream "dropout".

        Returns:
          Hidden states [batch, time, width], and the table [vocab, width]: logits are
          their product.

        Raises:
          ValueError: more positions than ``max_length``.
        """
        time = tokens.shape[1]
        if time > self.max_length:
            raise ValueError(f"max_length is {self.max_length}: found {time} positions")
        x = self.embed(self.embedding, tokens, jnp.arange(time)[None], train)
        return self._output(self.stack(x, train))

    def init_cache(self, batch: int, length: int, beam: int = 1) -> Cache:
        """An empty cache with room for ``length`` positions."""
        size = self.size
        return empty_cache(size.layers, self.form, size.width, batch, length, beam)

    def decode_step(
        self, tokens: Int[Array, "batch beam"], cache: Cache
    ) -> tuple[LinearOutput, Cache]:
        """Of the token after these; dropout is off.

        Args:
          tokens: the last token of each hypothesis.
          cache: of the tokens before.

        Returns:
          Hidden states [batch, beam, width] with the table, and the cache with these
          tokens.
        """
        x = self.embed(self.embedding, tokens, cache.filled[None, None], False)
        x, cache = self.stack.step(x, cache)
        return self._output(x), cache

    def _output(self, hidden: Float[Array, "batch time width"]) -> LinearOutput:
        return LinearOutput(hidden, self.embedding.astype(self.dtype))
