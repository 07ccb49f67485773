"""Decoder-only Transformer language model, as fairseq's `transformer_lm_gpt`.

Pre-norm with a final norm, GELU and fixed sinusoids. Input and output share one
embedding table; inputs are scaled by the square root of the width. Dropout is applied
after the embedding, after every sublayer and on attention weights.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import BlockSettings, Rates, Stack, causal_mask
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.embeddings import Embed, token_positions
from rdrop_jax.models.layers import Dtype
from rdrop_jax.models.sizes import Size

# The embedding table is sharded over the vocabulary, the rest as in layers.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embedding", PartitionSpec("tensor", None)),
    *layers.PARTITION_RULES,
)


SIZES = {
    "mini": Size(2, 128, 4, 512),
    "gpt": Size(12, 768, 12, 3072),
}


class Decoder(nn.Module):
    """Language model with tied input and output embeddings.

    Attributes:
      vocab_size: number of tokens in the vocabulary.
      size: depth and widths.
      rates: dropout rates.
      pre_norm: norms before the sublayers and after the last block.
      activation: "gelu" or "relu".
      positions: "fairseq" or "marian" sinusoids, or "learned".
      position_offset: table row of the first position.
      max_length: maximum number of positions.
      scale_embedding: multiply token embeddings by the square root of the width.
      dtype: dtype of the activations; parameters are float32.
      remat: recompute each block in the backward pass.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
    """

    vocab_size: int
    size: Size = SIZES["gpt"]
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
        """Create parameters and submodules."""
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
        settings = BlockSettings(
            self.size.heads,
            self.size.mlp_width,
            self.rates,
            self.pre_norm,
            self.activation,
            self.dtype,
            self.masks,
        )
        self.stack = Stack(self.size.layers, settings, self.pre_norm, self.remat)

    def __call__(
        self, tokens: Int[Array, "batch time"], *, train: bool
    ) -> LinearOutput:
        """Compute the output for the next token at every position.

        Args:
          tokens: token ids.
          train: whether dropout is on; it needs the random stream "dropout".

        Returns:
          Hidden states [batch, time, width] and embedding table [vocab, width], whose
          product is the logits.

        Raises:
          ValueError: more positions than ``max_length``.
        """
        at = token_positions(tokens, self.max_length)
        x = self.embed(self.embedding, tokens, at, train)
        return self._output(self.stack(x, causal_mask(tokens.shape[1]), train))

    def init_cache(self, batch: int, length: int, beam: int = 1) -> Cache:
        """Create an empty cache of ``length`` positions."""
        return self.stack.empty_cache(self.size.width, batch, length, beam)

    def decode_step(
        self, tokens: Int[Array, "batch beam"], cache: Cache
    ) -> tuple[LinearOutput, Cache]:
        """Compute the output for the next token, with dropout off.

        Args:
          tokens: last token of each hypothesis.
          cache: cache of the preceding tokens.

        Returns:
          Hidden states [batch, beam, width] with the embedding table, and the cache
          including these tokens.
        """
        x = self.embed(self.embedding, tokens, cache.filled[None, None], False)
        x, cache = self.stack.step(x, cache)
        return self._output(x), cache

    def _output(self, hidden: Float[Array, "batch time width"]) -> LinearOutput:
        return LinearOutput(hidden, self.embedding.astype(self.dtype))
