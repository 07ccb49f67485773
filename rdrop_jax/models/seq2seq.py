"""Encoder-decoder Transformer (Vaswani et al., 2017) as in fairseq and BART.

The default is fairseq's `transformer_iwslt_de_en`: post-norm, sinusoidal positions,
ReLU, and one embedding table for source, target and output. Other options give BART.
Dropout is applied after both embeddings and after every sublayer. Attention weights,
activations and whole layers (LayerDrop) have separate rates.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from rdrop_jax.models import layers
from rdrop_jax.models.blocks import Rates, Stack, block_settings, causal_mask
from rdrop_jax.models.cache import Cache
from rdrop_jax.models.embeddings import Keep, make_embed, token_positions
from rdrop_jax.models.layers import Dtype
from rdrop_jax.models.sizes import Seq2SeqSize

SHARE = ("all", "decoder", "none")

# Embedding tables and output are sharded over the vocabulary, the rest as in layers.
PARTITION_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)(source_)?embedding", PartitionSpec("tensor", None)),
    (r"(^|/)output", PartitionSpec(None, "tensor")),
    (r"(^|/)logits_bias", PartitionSpec("tensor")),
    *layers.PARTITION_RULES,
)


SIZES = {
    "transformer": {
        "iwslt_de_en": Seq2SeqSize(6, 6, 512, 4, 1024),
        "vaswani_wmt_en_de_big": Seq2SeqSize(6, 6, 1024, 16, 4096),
    },
    "marian": {"base": Seq2SeqSize(6, 6, 512, 8, 2048)},
    "bart": {
        "base": Seq2SeqSize(6, 6, 768, 12, 3072),
        "large": Seq2SeqSize(12, 12, 1024, 16, 4096),
    },
}


class Seq2Seq(nn.Module):
    """Encoder-decoder model for translation or summarization.

    Attributes:
      vocab_size: target vocabulary size, and source vocabulary size if share is "all".
      size: depths and widths.
      rates: dropout rates.
      source_vocab_size: source vocabulary size, if its table is not shared.
      share: "all" for one table, "decoder" to share target and output, or "none".
      pre_norm: norms before the sublayers and after the last block.
      activation: "relu", "gelu" or "silu".
      positions: "fairseq" or "marian" sinusoids, or "learned".
      position_offset: table row of the first position; 2 for BART.
      max_length: maximum number of positions of source and of target.
      scale_embedding: multiply token embeddings by the square root of the width.
      embedding_norm: LayerNorm after the embeddings, as in BART.
      logits_bias: add a bias to the logits.
      dtype: dtype of the activations; parameters and logits are float32.
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
    """

    vocab_size: int
    size: Seq2SeqSize = SIZES["transformer"]["iwslt_de_en"]
    rates: Rates = Rates()
    source_vocab_size: int | None = None
    share: str = "all"
    pre_norm: bool = False
    activation: str = "relu"
    positions: str = "fairseq"
    position_offset: int = 0
    max_length: int = 1024
    scale_embedding: bool = True
    embedding_norm: bool = False
    logits_bias: bool = False
    dtype: Dtype = jnp.float32
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False

    def setup(self) -> None:
        """Create parameters and submodules."""
        if self.share not in SHARE:
            raise ValueError(f"share must be one of {SHARE}: found {self.share!r}")
        size, width = self.size, self.size.width
        normal = nn.initializers.normal(width**-0.5)
        table = (self.vocab_size, width)
        self.embedding = self.param("embedding", normal, table, jnp.float32)
        if self.share != "all":
            other = (self.source_vocab_size or self.vocab_size, width)
            self.source = self.param("source_embedding", normal, other, jnp.float32)
        if self.share == "none":
            self.output = self.param("output", normal, table[::-1], jnp.float32)
        if self.logits_bias:
            zeros = nn.initializers.zeros
            self.bias = self.param("logits_bias", zeros, table[:1], jnp.float32)
        self.source_embed = make_embed(self, norm=self.embedding_norm)
        self.target_embed = make_embed(self, norm=self.embedding_norm)
        settings = block_settings(self, pre_norm=self.pre_norm)
        norm, remat = self.pre_norm, self.remat
        self.encoder = Stack(size.encoder_layers, settings, norm, remat)
        self.decoder = Stack(
            size.decoder_layers, settings, norm, remat, cross_attention=True
        )

    def __call__(
        self,
        src: Int[Array, "batch source"],
        src_where: Bool[Array, "batch source"],
        inputs: Int[Array, "batch time"],
        src_keep: Bool[Array, "batch #source #width"] | None = None,
        keep: Keep = None,
        *,
        train: bool,
        return_hidden: bool = False,
    ) -> Float[Array, "batch time vocab"]:
        """Compute next-token logits at every position of the target.

        Args:
          src: source ids, padded on the right.
          src_where: True on source tokens.
          inputs: target ids shifted to the right, so that they begin with BOS. Padded
            on the right, which causal attention hides from earlier positions.
          src_keep: False on cut embeddings of the source; None cuts none.
          keep: the same of the inputs.
          train: whether dropout is on; it needs the random stream "dropout".
          return_hidden: return the output layer's inputs, [batch, time, width].

        Returns:
          float32 logits.
        """
        memory = self.encode(src, src_where, src_keep, train=train)
        hidden = self.decode_hidden(memory, src_where, inputs, keep, train=train)
        return hidden if return_hidden else self.logits(hidden)

    def encode(
        self,
        src: Int[Array, "batch source"],
        src_where: Bool[Array, "batch source"],
        keep: Keep = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch source width"]:
        """Encode the source; return the memory that the decoder attends to."""
        table = self.embedding if self.share == "all" else self.source
        at = token_positions(src, self.max_length)
        x = self.source_embed(table, src, at, train, keep)
        return self.encoder(x, src_where[:, None, None], train)

    def decode_hidden(
        self,
        memory: Float[Array, "batch source width"],
        src_where: Bool[Array, "batch source"],
        inputs: Int[Array, "batch time"],
        keep: Keep = None,
        *,
        train: bool = False,
    ) -> Float[Array, "batch time width"]:
        """Return the inputs of the output layer for a full target."""
        at = token_positions(inputs, self.max_length)
        x = self.target_embed(self.embedding, inputs, at, train, keep)
        causal = causal_mask(inputs.shape[1])
        return self.decoder(x, causal, train, (memory, src_where[:, None, None]))

    def logits(
        self, hidden: Float[Array, "*rows width"]
    ) -> Float[Array, "*rows vocab"]:
        """Compute logits in float32 for any dtype of the activations."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        tied = self.share != "none"
        kernel = (self.embedding if tied else self.output).astype(self.dtype)
        y = jax.lax.dot_general(
            rows,
            kernel,
            (((1,), (1 if tied else 0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if self.logits_bias:
            y = y + self.bias[None]
        return y.reshape(*hidden.shape[:-1], self.vocab_size)

    def init_cache(
        self,
        memory: Float[Array, "batch source width"],
        src_where: Bool[Array, "batch source"],
        length: int,
    ) -> Cache:
        """Create an empty decoding cache of one beam for encoded sources.

        Args:
          memory: result of `encode`.
          src_where: True on source tokens.
          length: allocated positions; `rdrop_jax.models.cache.grow` adds more.

        Returns:
          The cache, including keys and values of the source.
        """
        known = tuple(block.keys_values(memory) for block in self.decoder.block)
        return self.decoder.empty_cache(
            self.size.width, len(memory), length, (known, src_where)
        )

    def decode_step(
        self, tokens: Int[Array, "batch beam"], cache: Cache
    ) -> tuple[Float[Array, "batch beam vocab"], Cache]:
        """Compute next-token logits of every hypothesis, with dropout off.

        Args:
          tokens: last token of each hypothesis, initially BOS.
          cache: cache of the preceding tokens.

        Returns:
          Logits, and the cache including these tokens.
        """
        x = self.target_embed(self.embedding, tokens, cache.filled[None, None], False)
        x, cache = self.decoder.step(x, cache)
        return self.logits(x), cache
