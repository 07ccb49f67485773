"""Decoder-only Transformer language model, as fairseq's `transformer_lm_gpt`.

Pre-norm with a final norm, GELU and fixed sinusoids. Input and output share one
embedding table; inputs are scaled by the square root of the width. Dropout is applied
after the embedding, after every sublayer and on attention weights.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from rdrop_jax.core.large_vocab import LinearOutput
from rdrop_jax.models import layers
from rdrop_jax.models.blocks import Rates, Stack, block_settings, causal_mask
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.embeddings import Keep, make_embed, token_positions
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


class CausalDecoder(nn.Module):
    """Language model from token ids to the factors of its logits, and its decoding.

    A subclass sets ``size``, ``max_length`` and ``stack``, and embeds tokens and
    projects hidden states by `embed_tokens` and `make_output`.
    """

    def __call__(
        self, tokens: Int[Array, "batch time"], keep: Keep = None, *, train: bool
    ) -> Any:
        """Compute the output for the next token at every position.

        Args:
          tokens: token ids.
          keep: False on cut embeddings, of tokens or features; None cuts none.
          train: whether dropout is on; it needs the random stream "dropout".

        Returns:
          The result of `make_output`.

        Raises:
          ValueError: more positions than ``max_length``.
        """
        at = token_positions(tokens, self.max_length)
        x = self.embed_tokens(tokens, at, train, keep)
        x = self.stack(x, causal_mask(tokens.shape[1]), train)
        return self.make_output(x, train)

    def init_cache(self, batch: int, length: int) -> Cache:
        """Create an empty cache of ``length`` positions and one beam."""
        return self.stack.empty_cache(self.size.width, batch, length)

    def decode_step(
        self, tokens: Int[Array, "batch beam"], cache: Cache
    ) -> tuple[Any, Cache]:
        """Compute the output for the next token, with dropout off.

        Args:
          tokens: last token of each hypothesis.
          cache: cache of the preceding tokens.

        Returns:
          The result of `make_output`, and the cache including these tokens.
        """
        x = self.embed_tokens(tokens, cache.filled[None, None], False)
        x, cache = self.stack.step(x, cache)
        return self.make_output(x, False), cache


class Decoder(CausalDecoder):
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
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
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
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        width = self.size.width
        self.embedding = self.param(
            "embedding",
            nn.initializers.normal(width**-0.5),
            (self.vocab_size, width),
            jnp.float32,
        )
        self.embed = make_embed(self)
        settings = block_settings(self, pre_norm=self.pre_norm)
        self.stack = Stack(self.size.layers, settings, self.pre_norm, self.remat)

    def embed_tokens(
        self,
        tokens: Int[Array, "batch time"],
        at: Int[Array, "1 _"],
        train: bool,
        keep: Keep = None,
    ) -> Float[Array, "batch time width"]:
        """Embed tokens at positions ``at``."""
        return self.embed(self.embedding, tokens, at, train, keep)

    def make_output(
        self, x: Float[Array, "batch time width"], train: bool
    ) -> LinearOutput:
        """Return hidden states and the table [vocab, width] as their kernel."""
        del train
        return LinearOutput(x, self.embedding.astype(self.dtype))
